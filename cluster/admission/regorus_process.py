"""One process with one regorus engine, from its parent's side: the request, the deadline, and the end."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import orjson

from cluster.admission.policy_engine import PolicyEngineError, PolicyTimeoutError
from cluster.admission.regorus_child import ANSWER, REQUEST

_CHILD: Final = str(Path(__file__).with_name("regorus_child.py"))
MAX_ANSWER_BYTES: Final = 16 << 20
# The kernel ends a late child by itself; this is for one that can't run at all.
_GRACE_S: Final = 5.0


class RegorusRuleError(PolicyEngineError):
    """The rules or the input are wrong; the process that said so goes on."""

    code = "policy_rule"


class RegorusProcess:
    """A started child; used by one thread at a time. After any error but RegorusRuleError it is of no use: `end` it."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        try:
            # No environment, so that no rule can read one, and no other descriptor.
            self._process = subprocess.Popen(
                [sys.executable, "-I", _CHILD],
                stdin=there.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"LC_ALL": "C.UTF-8"},
                cwd="/",
            )
        except OSError as e:
            here.close()
            raise PolicyEngineError(f"No process can be started for the policy: {e.strerror}.") from None
        finally:
            there.close()
        self._socket = here

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it is a child of this process that has not ended."""
        return self._process.poll() is None

    def load(self, modules: tuple[tuple[str, str], ...], data_json: str, *, deadline_us: int, coverage: bool = False) -> None:
        """Let the engine take and check these rules; raises PolicyEngineError."""
        body = orjson.dumps({"modules": modules, "data": data_json, "coverage": coverage})
        self.ask(b"L", "", body, deadline_us)

    def ask(self, op: bytes, name: str, body: bytes, deadline_us: int) -> bytes:
        """Return the child's answer to one request.

        Raises RegorusRuleError for what the engine refuses, PolicyTimeoutError when it took longer than `deadline_us`,
        PolicyEngineError when the child ended otherwise.
        """
        deadline_ms = max(1, deadline_us // 1_000)
        rule = name.encode()
        try:
            self._socket.settimeout(deadline_ms / 1_000 + _GRACE_S)
            self._socket.sendall(REQUEST.pack(op, deadline_ms, len(rule), len(body)) + rule + body)
            kind, length = ANSWER.unpack(self._read(ANSWER.size))
            if length > MAX_ANSWER_BYTES:
                raise PolicyEngineError(f"The policy's answer has {length} bytes; the most is {MAX_ANSWER_BYTES}.")
            answer = self._read(length)
        except TimeoutError:
            raise _late(deadline_ms) from None
        except (ConnectionError, EOFError):
            status = self.end()
            if status == -signal.SIGALRM:
                raise _late(deadline_ms) from None
            raise PolicyEngineError(f"The process that evaluates the policy ended with status {status}.") from None
        if kind != b"+":
            raise RegorusRuleError(f"The policy could not be evaluated: {answer.decode('utf-8', 'replace')}")
        return answer

    def end(self) -> int:
        """End the child and return its exit status, negative for a signal."""
        self._socket.close()
        # Its alarm may have come first; it has no state, so that nothing is lost in either case.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(0.2)
        self._process.kill()
        return self._process.wait()

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._socket.recv(count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


def _late(deadline_ms: int) -> PolicyTimeoutError:
    return PolicyTimeoutError(f"The policy took longer than {deadline_ms} ms and was stopped.")
