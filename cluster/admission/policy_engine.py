"""The port of the policy engine. It fails closed: whatever is not a clean answer is an error, and an error is a deny."""

from __future__ import annotations

from typing import Any, Final, Protocol

from cluster.errors import UnavailableError

# A registration of 64 names in each list takes about 20 KB.
MAX_INPUT_CHARS: Final = 64 << 10
# Of one evaluation, and of loading a bundle.
DEADLINE_US: Final = 2_000_000
LOAD_DEADLINE_US: Final = 15_000_000


class PolicyEngineError(UnavailableError):
    """The engine did not answer cleanly: an error, a panic, too late, or nothing defined. Callers deny."""

    code = "policy_engine"


class PolicyTimeoutError(PolicyEngineError):
    """The engine did not answer in time; what it was at was stopped. Callers deny, and say that it was late."""

    code = "policy_timeout"


class PolicyEngine(Protocol):
    """Evaluates one bundle; safe to use from many threads."""

    @property
    def revision(self) -> str:
        """The revision of the bundle that it evaluates."""
        ...

    @property
    def digest(self) -> str:
        """The digest of the bundle that it evaluates."""
        ...

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        """Return the object at `entrypoint` ("data.sovereign.admission.decision") for the input, a JSON text.

        Raises PolicyEngineError for everything that is not an object: also when the rule is undefined.
        """
        ...
