"""The way from the command to the cluster: HTTP with the first API key, found through the state file of its home."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cluster.errors import InternalError, SovereignError, UnauthenticatedError, UnavailableError, from_problem

if TYPE_CHECKING:
    import httpx

    from cluster.settings import Settings

# Above the cluster's own deadlines, so that its answer about one is what a person sees.
GRACE_S = 15.0
CONTROL_S = 45.0


class ApiClient:
    """Calls the HTTP API of the cluster that runs under one home, and turns problem documents back into errors."""

    def __init__(self, settings: Settings, *, calls: bool = False, key: str = "") -> None:
        """Find the cluster of `settings`; with `calls` answers may take as long as a call of an agent may.

        `key` is an API key to use in the place of the home's first.
        """
        import httpx

        timeout_s = settings.call_timeout_s + GRACE_S if calls else CONTROL_S

        self._url = url_of(settings)
        headers = {"Authorization": f"Bearer {key or api_key_of(settings)}"}
        # Loopback is never reached through a proxy that the environment names.
        self._client = httpx.Client(base_url=self._url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        form: dict[str, str] | None = None,
        params: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Send one request, with `body` as JSON or with a `form`, and return the JSON of its answer (None if empty).

        Raises what the cluster refused with.
        """
        import httpx

        query = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            answer = self._client.request(method, path, json=body, data=form, params=query, headers=headers)
        except httpx.HTTPError as e:
            raise self._away(e) from None
        if answer.status_code >= 400:
            raise _refusal(answer)
        return answer.json() if answer.content else None

    @contextmanager
    def events(self, path: str, body: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """Send one request and yield the server-sent events of its answer as they come, up to `[DONE]`."""
        import httpx

        try:
            with self._client.stream("POST", path, json=body) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _refusal(answer)
                yield _events_of(answer)
        except httpx.HTTPError as e:
            raise self._away(e) from None

    def _away(self, fault: Exception) -> UnavailableError:
        return UnavailableError(
            f"The cluster at {self._url} did not answer: {fault or type(fault).__name__}.",
            hint="See how it is with `sovereign status`, and what it wrote with `sovereign logs`.",
        )


def url_of(settings: Settings) -> str:
    """Return the URL of the cluster that runs under this home; raises UnavailableError if none does."""
    from actors.run_state import read_state

    state = read_state(settings)
    if state is None or not state.alive:
        raise UnavailableError(f"No cluster runs under {settings.home}.", hint="Start one with `sovereign up`.")
    if state.status != "ready":
        raise UnavailableError(f"The cluster under {settings.home} is {state.status}.", hint="Try again in a few seconds.")
    return state.http_url


def api_key_of(settings: Settings) -> str:
    """Return the first API key of this home; raises UnauthenticatedError if it can't be read."""
    path = settings.secret_dir / "api-key"
    try:
        return path.read_text().strip()
    except OSError as e:
        raise UnauthenticatedError(
            f"The API key in {path} can't be read: {e.strerror}.", hint="Run the command as the user who started the cluster."
        ) from None


def _events_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise _error_of(event, answer.status_code)
        yield event


def _refusal(answer: httpx.Response) -> SovereignError:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return InternalError(f"The cluster answered {answer.status_code} {answer.reason_phrase}: {answer.text[:200]}")
    return _error_of(document, answer.status_code)


def _error_of(document: dict[str, Any], status: int) -> SovereignError:
    """Return the error in a problem document, or in the shape of OpenAI's, whose message has the fields and the hint."""
    inner = document.get("error")
    if not isinstance(inner, dict):
        return from_problem(document)
    return from_problem({"code": inner.get("code"), "detail": inner.get("message", f"The cluster answered {status}.")})
