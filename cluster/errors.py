"""Every way the platform says no: a small set of kinds, each with a code, an HTTP status and whether a retry can help.

An error names what happened, to which thing, why, and what to do (`detail`, `hint`). It crosses processes by pickle
(inside the platform) and as an RFC 9457 problem document (everywhere else): `to_problem` and `from_problem`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

PROBLEM_BASE = "urn:sovereign:error:"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong place in an input: `field` is a dotted path ("resources.memory"), `message` a sentence."""

    field: str
    message: str


class SovereignError(Exception):
    """The root of all errors of this platform."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        hint: str = "",
        errors: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s
        # Of what was reserved for the call that it ended: tokens and micro-dollars; None when nobody said. Not for clients.
        self.spent: tuple[int, int] | None = None

    def __str__(self) -> str:
        lines = [self.detail]
        lines += [f"  {e.field}: {e.message}" for e in self.errors]
        if self.hint:
            lines.append(self.hint)
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.detail, self.hint, self.errors, self.retry_after_s)

    def to_problem(self) -> dict[str, Any]:
        """Return the RFC 9457 problem document of this error."""
        problem: dict[str, Any] = {
            "type": PROBLEM_BASE + self.code,
            "title": type(self).title(),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.hint:
            problem["hint"] = self.hint
        if self.errors:
            problem["errors"] = [{"field": e.field, "message": e.message} for e in self.errors]
        if self.retry_after_s is not None:
            problem["retry_after_s"] = self.retry_after_s
        return problem

    @classmethod
    def title(cls) -> str:
        """Return the kind as words: `QuotaExceededError` is "Quota exceeded"."""
        name = cls.__name__.removesuffix("Error")
        words = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
        return words[:1].upper() + words[1:]


class InvalidRequestError(SovereignError):
    """The input is not of the form that was asked for."""

    code = "invalid_request"
    status = 400


class InvalidScopeError(SovereignError):
    """A token was asked for with more rights than whoever asks has, or with rights that do not exist."""

    code = "invalid_scope"
    status = 400


class UnsupportedGrantTypeError(SovereignError):
    """A token was asked for in a way that the issuer does not know."""

    code = "unsupported_grant_type"
    status = 400


class UnauthenticatedError(SovereignError):
    """Nobody showed who they are, or what they showed does not hold."""

    code = "unauthenticated"
    status = 401


class AdmissionDeniedError(SovereignError):
    """Policy refused; `errors` holds every failed check by name."""

    code = "admission_denied"
    status = 403


class QuotaExceededError(SovereignError):
    """The tenant's quota has no room for what was asked."""

    code = "quota_exceeded"
    status = 403


class NotFoundError(SovereignError):
    """There is no such thing, or it belongs to another tenant, which must look the same."""

    code = "not_found"
    status = 404


class ConflictError(SovereignError):
    """The thing is in another state than this request needs."""

    code = "conflict"
    status = 409


class PreconditionFailedError(SovereignError):
    """It has changed since the caller read it (If-Match)."""

    code = "precondition_failed"
    status = 412


class IllegalTransitionError(ConflictError):
    """A lifecycle table has no such step; the detail carries the history."""

    code = "illegal_transition"


class GrantRefusedError(SovereignError):
    """A call grant is missing, forged, replayed, expired or of another generation."""

    code = "grant_refused"
    status = 403


class StaleGenerationError(SovereignError):
    """The agent's process is draining or was replaced: ask the directory again and retry."""

    code = "stale_generation"
    status = 409
    retryable = True


class PayloadTooLargeError(SovereignError):
    """The input is larger than its bound."""

    code = "payload_too_large"
    status = 413


class UnsupportedMediaTypeError(SovereignError):
    """The body is of a kind, or in an encoding, that the path does not take."""

    code = "unsupported_media_type"
    status = 415


class SlowRequestError(SovereignError):
    """The request did not come within its time."""

    code = "request_timeout"
    status = 408


class IterationLimitError(SovereignError):
    """The agent wanted more model iterations than its policy allows."""

    code = "iteration_limit"
    status = 422


class OverloadedError(SovereignError):
    """A bounded queue is full; nothing was started."""

    code = "overloaded"
    status = 429
    retryable = True


class CancelledCallError(SovereignError):
    """The caller went away or cancelled; what ran until then is billed once."""

    code = "cancelled"
    status = 499


class AgentFailedError(SovereignError):
    """The agent itself raised; the platform is well."""

    code = "agent_failed"
    status = 500


class JobFailedError(SovereignError):
    """A job ended without success; the platform is well."""

    code = "job_failed"
    status = 500


class InternalError(SovereignError):
    """A fault of the platform."""

    code = "internal"
    status = 500


class ModelFailedError(SovereignError):
    """The model's provider did not answer, or answered with an error."""

    code = "model_failed"
    status = 502
    retryable = True


class UnavailableError(SovereignError):
    """A part that is needed is not there right now."""

    code = "unavailable"
    status = 503
    retryable = True


class NoNodeError(UnavailableError):
    """No node of the cluster can hold the agent, however long it waits, unless nodes change."""

    code = "no_node"


class AgentLostError(UnavailableError):
    """The agent's process ended during the call: the call may have run, and was not acknowledged."""

    code = "agent_lost"


class DeadlineExceededError(SovereignError):
    """The call's deadline passed and its work was stopped."""

    code = "deadline_exceeded"
    status = 504
    retryable = True


class OutOfMemoryError(SovereignError):
    """The agent asked for more memory than it declared."""

    code = "out_of_memory"
    status = 507


class IntegrityError(SovereignError):
    """A record is not what was written: changed, cut, or not of this format."""

    code = "integrity"
    status = 500


class StorageError(SovereignError):
    """An object store or a disk did not do what it promises."""

    code = "storage"
    status = 503
    retryable = True


class JournalFullError(StorageError):
    """The node can record nothing more now, so it takes on nothing more; what runs is finished and recorded."""

    code = "journal_full"


class ConfigurationError(SovereignError):
    """A setting is wrong or something that must be installed is missing; nothing was started."""

    code = "configuration"
    status = 500


def _rebuild(
    cls: type[SovereignError],
    detail: str,
    hint: str,
    errors: tuple[FieldError, ...],
    retry_after_s: float | None,
) -> SovereignError:
    return cls(detail, hint=hint, errors=errors, retry_after_s=retry_after_s)


def _subclasses(cls: type[SovereignError]) -> list[type[SovereignError]]:
    return [cls, *(s for c in cls.__subclasses__() for s in _subclasses(c))]


def from_problem(problem: dict[str, Any]) -> SovereignError:
    """Return the error that `to_problem` wrote; an unknown code becomes `InternalError`."""
    # A kind comes before the kinds under it, and the root, which has InternalError's code, does not count.
    kinds = {c.code: c for c in reversed(_subclasses(SovereignError)[1:])}
    kind = kinds.get(str(problem.get("code")), InternalError)
    fields = [FieldError(str(e.get("field")), str(e.get("message"))) for e in problem.get("errors", ())]
    error = kind(
        str(problem.get("detail", "")),
        hint=str(problem.get("hint", "")),
        errors=fields,
        retry_after_s=problem.get("retry_after_s"),
    )
    if "spent" in problem:
        tokens, micro_usd = problem["spent"]
        error.spent = (int(tokens), int(micro_usd))
    return error
