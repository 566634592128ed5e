"""OPA over its REST API: a server of this cluster alone, usually beside the governor, which gets the bundle from here.

Fails closed. Every rule file is sent with the bundle's digest in it, and every answer brings the digests of all of them and
of the data, read in the same evaluation: an answer by other rules, or by some of these and some of others, is none.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx
import orjson

from cluster.admission.bundle import PolicyBundle
from cluster.admission.policy_engine import (
    DEADLINE_US,
    LOAD_DEADLINE_US,
    MAX_INPUT_CHARS,
    PolicyEngineError,
    PolicyTimeoutError,
)
from cluster.errors import ConfigurationError
from cluster.identity.secrets import Secret

_LOAD_S: Final = LOAD_DEADLINE_US / 1_000_000
MAX_ANSWER_BYTES: Final = 1 << 20
# Names of our own in OPA: its policies' ids, the rule in each package, the package of the stamped answers.
_PREFIX: Final = "sovereign/"
_STAMP: Final = "bundle_digest"
_STAMPED: Final = "stamped.rego"


class OpaPolicyEngine:
    """Evaluates one bundle on an OPA server; safe to use from many threads."""

    def __init__(self, bundle: PolicyBundle, url: str, *, deadline_us: int = DEADLINE_US, token: Secret | None = None) -> None:
        """Send the bundle to the server; raises ConfigurationError when it can't be sent.

        `url` is https, or http on loopback; `token` is sent as a bearer token.
        """
        self._bundle = bundle
        self._deadline_us = deadline_us
        seconds = deadline_us / 1_000_000
        self._http = httpx.Client(
            base_url=_checked(url),
            timeout=httpx.Timeout(seconds),
            trust_env=False,
            follow_redirects=False,
            headers={
                "Content-Type": "application/json",
                "Accept-Encoding": "identity",
                **({"Authorization": f"Bearer {token.reveal()}"} if token else {}),
            },
            limits=httpx.Limits(max_connections=16, max_keepalive_connections=16, keepalive_expiry=30),
        )
        try:
            self._send()
        except httpx.HTTPError as e:
            self.close()
            raise ConfigurationError(
                f"The policy can't be sent to OPA at {url}: {type(e).__name__}: {str(e)[:200]}",
                hint="Start it (`opa run --server --addr 127.0.0.1:8181`) or set SOVEREIGN_OPA_URL.",
            ) from None
        except BaseException:
            self.close()
            raise

    @property
    def revision(self) -> str:
        """The bundle's revision."""
        return self._bundle.revision

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self._bundle.digest

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        """Return the object at `entrypoint`, a package's `decision` or `grant`; raises PolicyEngineError, PolicyTimeoutError."""
        if len(input_json) > MAX_INPUT_CHARS:
            raise PolicyEngineError(f"The policy input has {len(input_json)} characters; the most is {MAX_INPUT_CHARS}.")
        path = quote(_stamped_name(entrypoint))
        try:
            # As it stands, for it was digested so; read only to be sure that it is one document and no more.
            orjson.loads(input_json)
            body = b'{"input":' + input_json.encode() + b"}"
        except ValueError:
            raise PolicyEngineError("The policy input is not JSON.") from None
        try:
            response = self._http.post(f"/v1/data/sovereign/stamped/{path}", content=body)
        except httpx.TimeoutException:
            raise PolicyTimeoutError(f"OPA took longer than {self._deadline_us // 1_000} ms.") from None
        except (httpx.HTTPError, httpx.InvalidURL) as e:
            raise PolicyEngineError(f"OPA can't be asked: {type(e).__name__}: {str(e)[:200]}") from None
        return self._read(entrypoint, response)

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def _read(self, entrypoint: str, response: httpx.Response) -> dict[str, Any]:
        if response.status_code != httpx.codes.OK or len(response.content) > MAX_ANSWER_BYTES:
            raise PolicyEngineError(f"OPA answered {response.status_code} with {len(response.content)} bytes.")
        try:
            document = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise PolicyEngineError("OPA's answer is not JSON.") from None
        result = document.get("result") if isinstance(document, dict) else None
        if not isinstance(result, dict):
            raise PolicyEngineError(f"The policy has no answer at {entrypoint}.")
        if result.get("digests") != [self.digest]:
            raise PolicyEngineError(f"OPA decided by other rules than those of the bundle {self.digest[:12]}.")
        answer = result.get("answer")
        if not isinstance(answer, dict):
            raise PolicyEngineError(f"The policy has no answer at {entrypoint}.")
        return answer

    def _send(self) -> None:
        modules = {_PREFIX + name: f'{text}\n{_STAMP} := "{self.digest}"\n' for name, text in self._bundle.modules}
        modules[_PREFIX + _STAMPED] = stamped_module(self._bundle)
        there = self._taken(self._http.get("/v1/policies", timeout=_LOAD_S)).get("result") or []
        foreign = sorted(p["id"] for p in there if not p["id"].startswith(_PREFIX) and _is_ours(p.get("raw", "")))
        if foreign:
            raise ConfigurationError(
                f"OPA has rules of our packages from elsewhere: {', '.join(foreign)[:200]}.",
                hint="Give this cluster an OPA server of its own, started without them.",
            )
        data = orjson.loads(self._bundle.data_json)
        # In one transaction with its stamp.
        patch = [{"op": "add", "path": f"/{name}", "value": value} for name, value in {**data, _STAMP: self.digest}.items()]
        self._taken(self._http.patch("/v1/data", content=orjson.dumps(patch), timeout=_LOAD_S))
        known = {p["id"]: p.get("raw") for p in there if p["id"].startswith(_PREFIX)}
        # A file is refused until the files whose functions it uses are there; whatever order that is, it comes to an end.
        waiting = [("PUT", name, text) for name, text in modules.items() if known.get(name) != text]
        waiting += [("DELETE", name, "") for name in known if name not in modules]
        while waiting:
            refused = []
            for method, name, text in waiting:
                response = self._http.request(
                    method,
                    f"/v1/policies/{quote(name)}",
                    content=text.encode(),
                    headers={"Content-Type": "text/plain"},
                    timeout=_LOAD_S,
                )
                if response.status_code != httpx.codes.OK:
                    refused.append(((method, name, text), response))
            if len(refused) == len(waiting):
                self._taken(refused[0][1])
            waiting = [step for step, _ in refused]

    def _taken(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code not in (httpx.codes.OK, httpx.codes.NO_CONTENT):
            raise ConfigurationError(f"OPA does not take the policy: {response.status_code} {response.text[:400]}")
        return orjson.loads(response.content) if response.content else {}


def stamped_module(bundle: PolicyBundle) -> str:
    """Return rules that give each `decision` and `grant` of the bundle together with the digests of all that it rests on."""
    packages = sorted({found[1] for _, text in bundle.modules if (found := re.search(r"^package (\S+)", text, re.MULTILINE))})
    stamps = ", ".join([f"data.{package}.{_STAMP}" for package in packages] + [f"data.{_STAMP}"])
    lines = ["package sovereign.stamped", "import rego.v1", f"digests := sort({{{stamps}}})"]
    for _, text in bundle.modules:
        package = re.search(r"^package (\S+)", text, re.MULTILINE)
        for rule in sorted(set(re.findall(r"^(decision|grant) :=", text, re.MULTILINE))):
            rule_path = f"data.{package[1] if package else ''}.{rule}"
            lines.append(f'{_stamped_name(rule_path)} := {{"digests": digests, "answer": {rule_path}}}')
    return "\n".join(lines) + "\n"


def _stamped_name(entrypoint: str) -> str:
    return entrypoint.removeprefix("data.").replace(".", "_")


def _is_ours(text: str) -> bool:
    return re.search(r"^\s*package\s+sovereign\b", text, re.MULTILINE) is not None


def _checked(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not host or parts.scheme not in ("http", "https") or (parts.scheme == "http" and not loopback):
        raise ConfigurationError(
            f"OPA at {url[:200]!r} can't be trusted to decide: it must answer by https, or on loopback.",
            hint="Set SOVEREIGN_OPA_URL, to http://127.0.0.1:8181 for instance.",
        )
    return url.rstrip("/")
