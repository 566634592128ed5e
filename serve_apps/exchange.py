"""One HTTP request on its way through the gateway: who asks, what was sent, how it is told from others in logs."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from actors.haproxy_launcher import REQUEST_ID
from actors.invoker import Invocation
from cluster.errors import FieldError, InvalidRequestError, SovereignError
from cluster.identity.ids import uuid7
from cluster.identity.principal import Principal

_REQUEST_ID = re.compile(REQUEST_ID)
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
# Headers of which a second one would let two parts of the road read different requests.
_SINGLE = frozenset(
    (
        b"authorization",
        b"x-api-key",
        b"host",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"idempotency-key",
        b"if-match",
        b"last-event-id",
    )
)


@dataclass(slots=True)
class Exchange:
    """What the gateway knows of one request beside its body."""

    request_id: str
    trace_id: str
    authorization: str
    # What the client sent as its `traceparent`, if it is one.
    traceparent: str = ""
    # What X-Deadline-S said, as text.
    asked_deadline: str = ""
    # What the client gave as its Idempotency-Key, and the id that the call has then; both are empty without.
    idempotency_key: str | None = None
    invocation_id: str = ""
    # What ended a streamed answer after it had begun.
    failed: SovereignError | None = None
    # From the monotonic clock, in nanoseconds: durations only.
    began_ns: int = field(default_factory=time.monotonic_ns)
    # When the stage before this one ended; 0 before the first.
    lap_ns: int = 0
    principal: Principal | None = None

    @classmethod
    def of(cls, request: Request) -> Exchange:
        """Read the headers that count; raises InvalidRequestError when one that must be single is sent twice."""
        headers: dict[bytes, bytes] = {}
        for name, value in request.scope["headers"]:
            if name in _SINGLE and name in headers:
                raise InvalidRequestError(f"The header {name.decode()} was sent twice.")
            headers[name] = value
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise InvalidRequestError("Content-Length and Transfer-Encoding were both sent.")
        asked = headers.get(b"x-request-id", b"").decode("latin-1")
        trace = _TRACEPARENT.fullmatch(headers.get(b"traceparent", b"").decode("latin-1"))
        return cls(
            request_id=asked if _REQUEST_ID.fullmatch(asked) else uuid7(),
            trace_id=trace.group(1) if trace else "",
            traceparent=trace.group(0) if trace else "",
            authorization=_credential(headers),
            asked_deadline=headers.get(b"x-deadline-s", b"").decode("latin-1"),
            idempotency_key=key.decode("latin-1") if (key := headers.get(b"idempotency-key")) is not None else None,
        )

    @property
    def elapsed_us(self) -> int:
        """Microseconds since the request was read."""
        return (time.monotonic_ns() - self.began_ns) // 1_000

    def lap_us(self) -> int:
        """Return the microseconds since the lap before, or since the request was read."""
        now = time.monotonic_ns()
        lap, self.lap_ns = (now - (self.lap_ns or self.began_ns)) // 1_000, now
        return lap

    def invocation(
        self,
        principal: Principal,
        agent_id: str,
        messages: list[dict[str, Any]],
        *,
        longest_s: float,
        conversation_id: str | None = None,
        max_output_tokens: int | None = None,
        temperature: float | None = None,
        **asked: Any,
    ) -> Invocation:
        """Return what is asked of an agent, with more of an Invocation's fields as `asked`; raises as `deadline_s`."""
        return Invocation(
            principal,
            agent_id,
            messages,
            self.deadline_s(longest_s),
            conversation_id=conversation_id,
            max_output_tokens=max_output_tokens,
            temperature=temperature,
            request_id=self.request_id,
            trace_id=self.trace_id,
            invocation_id=self.invocation_id or uuid7(),
            came_ns=self.began_ns,
            **asked,
        )

    def deadline_s(self, longest_s: float) -> float:
        """Return how many seconds the call may take: what X-Deadline-S asks, at most `longest_s`."""
        if not self.asked_deadline:
            return longest_s
        if not _SECONDS.fullmatch(self.asked_deadline) or float(self.asked_deadline) <= 0:
            wrong = FieldError("x-deadline-s", "must be a number of seconds above 0, such as 2.5")
            raise InvalidRequestError("The deadline is not valid.", errors=[wrong])
        return min(float(self.asked_deadline), longest_s)


def _credential(headers: dict[bytes, bytes]) -> str:
    """Return the credential as `Authorization` has it; `x-api-key`, in which LangGraph's clients send a key, is another way.

    Raises InvalidRequestError when they differ: what is between here and the client may have looked at either.
    """
    said = headers.get(b"authorization", b"").decode("latin-1")
    if (key := headers.get(b"x-api-key")) is None:
        return said
    meant = f"Bearer {key.decode('latin-1')}"
    scheme, _, token = said.partition(" ")
    if said and f"{scheme.title()} {token}" != meant:
        raise InvalidRequestError("Authorization and x-api-key were both sent, and differ.", hint="Send one of them.")
    return meant
