"""The embedded engine: regorus as an interpreter, one engine a process, each ended by the kernel when it is late.

Its faster compiled mode is left alone: it drops results silently. In this process it would hold every thread while it
evaluates, panic when another thread uses it, and a rule that loops would hang the governor: so it stands behind a socket,
which costs some 30 µs a decision and lets threads decide side by side. Fails closed, as the port says.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any, Final

import orjson

from cluster.admission.bundle import PolicyBundle
from cluster.admission.policy_engine import (
    DEADLINE_US,
    LOAD_DEADLINE_US,
    MAX_INPUT_CHARS,
    PolicyEngineError,
    PolicyTimeoutError,
)
from cluster.admission.regorus_process import RegorusProcess, RegorusRuleError
from cluster.errors import ConfigurationError

# Evaluations at once; more of them than CPUs only wait for each other.
MAX_PROCESSES: Final = 4


class RegorusPolicyEngine:
    """Evaluates one bundle in processes of its own, which end with it; safe to use from many threads."""

    def __init__(
        self,
        bundle: PolicyBundle,
        *,
        deadline_us: int = DEADLINE_US,
        load_deadline_us: int = LOAD_DEADLINE_US,
        processes: int = MAX_PROCESSES,
    ) -> None:
        """Load the bundle once, to refuse a broken or endless one now; raises ConfigurationError that names the place."""
        self._bundle = bundle
        self._deadline_us = deadline_us
        self._load_deadline_us = load_deadline_us
        self._room = threading.BoundedSemaphore(processes)
        # Processes that no thread uses; a list's append and pop are atomic.
        self._idle: list[RegorusProcess] = []
        self._ender = weakref.finalize(self, _end_all, self._idle)
        try:
            self._idle.append(self._start())
        except PolicyTimeoutError as e:
            raise ConfigurationError(f"The policy rules can't be loaded: {e.detail}") from None
        except PolicyEngineError as e:
            raise ConfigurationError(f"The policy rules can't be compiled: {e.detail}") from None

    @property
    def revision(self) -> str:
        """The bundle's revision."""
        return self._bundle.revision

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self._bundle.digest

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        """Return the object at `entrypoint`; raises PolicyEngineError, PolicyTimeoutError when it is late."""
        if len(input_json) > MAX_INPUT_CHARS:
            raise PolicyEngineError(f"The policy input has {len(input_json)} characters; the most is {MAX_INPUT_CHARS}.")
        try:
            body = input_json.encode()
        except UnicodeEncodeError:
            raise PolicyEngineError("The policy input is not Unicode text.") from None
        if not self._room.acquire(timeout=self._deadline_us / 1_000_000):
            raise PolicyTimeoutError(f"Every policy engine was busy for {self._deadline_us // 1_000} ms.")
        try:
            answer = self._ask(entrypoint, body)
        finally:
            self._room.release()
        if not isinstance(answer, dict):
            raise PolicyEngineError(f"The policy has no answer at {entrypoint}.")
        return answer

    def close(self) -> None:
        """End its processes; without a call they end when nothing refers to the engine any more."""
        self._ender()

    def _ask(self, entrypoint: str, body: bytes) -> Any:
        process = self._take()
        try:
            answer = orjson.loads(process.ask(b"E", entrypoint, body, self._deadline_us))
        except RegorusRuleError:
            self._give_back(process)
            raise
        except BaseException as e:
            process.end()
            if isinstance(e, orjson.JSONDecodeError):
                raise PolicyEngineError("The policy's answer is not JSON.") from None
            raise
        self._give_back(process)
        return answer

    def _give_back(self, process: RegorusProcess) -> None:
        self._idle.append(process)
        if not self._ender.alive:
            # Closed meanwhile, as the engine of an earlier bundle is.
            _end_all(self._idle)

    def _take(self) -> RegorusProcess:
        while self._idle:
            try:
                process = self._idle.pop()
            except IndexError:
                break
            # Nor is it alive to a fork, which would share the socket: it is no child of that one.
            if process.alive:
                return process
            process.end()
        return self._start()

    def _start(self) -> RegorusProcess:
        process = RegorusProcess()
        try:
            process.load(self._bundle.modules, self._bundle.data_json, deadline_us=self._load_deadline_us)
        except BaseException:
            process.end()
            raise
        return process


def _end_all(idle: list[RegorusProcess]) -> None:
    with contextlib.suppress(IndexError):
        while True:
            idle.pop().end()
