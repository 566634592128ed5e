"""The embedded engine: regorus as an interpreter, one per thread, because it panics when another thread uses it.

Its faster compiled mode is left alone: it drops results silently. A panic leaves an engine in an unknown state, so the
thread builds a new one. An evaluation can't be interrupted; the input is bounded instead, and a late answer is no answer.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import orjson
import regorus

from cluster.admission.bundle import PolicyBundle
from cluster.admission.policy_engine import PolicyEngineError
from cluster.clock import Clock, SystemClock
from cluster.errors import ConfigurationError

# A registration of 64 names in each list takes about 20 KB.
MAX_INPUT_CHARS: Final = 64 << 10
DEADLINE_US: Final = 2_000_000


class RegorusPolicyEngine:
    """Evaluates one bundle inside this process."""

    def __init__(self, bundle: PolicyBundle, *, clock: Clock | None = None, deadline_us: int = DEADLINE_US) -> None:
        """Compile the bundle once, to refuse a broken one now; raises ConfigurationError that names the place."""
        self._bundle = bundle
        self._clock = clock or SystemClock()
        self._deadline_us = deadline_us
        self._of_thread = threading.local()
        try:
            self._of_thread.engine = self._build()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # a panic of the engine is a BaseException
            raise ConfigurationError(f"The policy rules can't be compiled: {_first_lines(e)}") from None

    @property
    def revision(self) -> str:
        """The bundle's revision."""
        return self._bundle.revision

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self._bundle.digest

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        """Return the object at `entrypoint`; raises PolicyEngineError."""
        if len(input_json) > MAX_INPUT_CHARS:
            raise PolicyEngineError(f"The policy input has {len(input_json)} characters; the most is {MAX_INPUT_CHARS}.")
        started_us = self._clock.monotonic_us()
        try:
            engine = self._of_thread.__dict__.get("engine") or self._build()
            self._of_thread.engine = None
            engine.set_input_json(input_json)
            answer = orjson.loads(engine.eval_rule_as_json(entrypoint))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as e:  # a panic of the engine is a BaseException
            # Not put back: after an error or a panic nothing is known of it.
            raise PolicyEngineError(f"The policy could not be evaluated: {_first_lines(e)}") from None
        self._of_thread.engine = engine
        took_us = self._clock.monotonic_us() - started_us
        if took_us > self._deadline_us:
            raise PolicyEngineError(f"The policy took {took_us} µs; the most is {self._deadline_us}.")
        if not isinstance(answer, dict):
            raise PolicyEngineError(f"The policy has no answer at {entrypoint}.")
        return answer

    def _build(self) -> Any:
        engine = regorus.Engine()
        for name, text in self._bundle.modules:
            engine.add_policy(name, text)
        engine.add_data_json(self._bundle.data_json)
        return engine


def _first_lines(error: BaseException) -> str:
    # What follows is the engine's own stack, which tells an operator nothing.
    return " ".join(str(error).split("Stack backtrace")[0].split())[:400]
