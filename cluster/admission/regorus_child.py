"""A process that holds one regorus engine and answers its parent on stdin, a socket; run by file name, never imported for use.

Nothing in regorus can be interrupted, and it holds the interpreter's lock while it evaluates. So it runs here, under an
alarm that the kernel keeps: a rule that loops ends this process and no other.

A request is op, deadline (ms), length of the name, length of the body, name, body; an answer is op, length, body. Ops: `L`
load (body: modules, data, coverage), `E` evaluate the rule of that name over the body, `C` the coverage report, `A` the
syntax trees. Answers: `+` with JSON, `-` with what was wrong.
"""

import json
import resource
import signal
import socket
import struct
from typing import Any, Final

import regorus

REQUEST: Final = struct.Struct("!cIHI")
ANSWER: Final = struct.Struct("!cI")
MAX_MEMORY_BYTES: Final = 2 << 30


class _Engine:
    def __init__(self) -> None:
        self._bundle: dict[str, Any] = {"modules": [], "data": "{}", "coverage": False}
        self._engine: Any = None

    def answer(self, op: bytes, name: str, body: bytes) -> str:
        if op == b"L":
            self._bundle = json.loads(body)
            self._engine = self._build()
            return "{}"
        if op == b"C":
            return str(self._engine.get_coverage_report_as_json())
        if op == b"A":
            return str(self._engine.get_ast_as_json())
        self._engine.set_input_json(body.decode())
        return str(self._engine.eval_rule_as_json(name))

    def renew(self) -> None:
        """Begin with a new engine: after an error or a panic nothing is known of the old one."""
        self._engine = self._build()

    def _build(self) -> Any:
        engine = regorus.Engine()
        for name, text in self._bundle["modules"]:
            engine.add_policy(name, text)
        engine.add_data_json(self._bundle["data"])
        if self._bundle["coverage"]:
            engine.set_enable_coverage(True)
        # The first evaluation is what checks the rules against each other, whatever it asks for.
        engine.eval_query_as_json("1")
        return engine


def _read(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            # The parent has gone, or wants this process no more.
            raise SystemExit(0)
        parts += part
    return bytes(parts)


def _said(error: BaseException) -> bytes:
    # What follows is the engine's own stack, which tells an operator nothing.
    return " ".join(str(error).split("Stack backtrace")[0].split())[:400].encode()


def main() -> None:
    """Answer until the parent closes the socket."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    # A Ctrl-C at the terminal is for the parent, which then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    engine = _Engine()
    with socket.socket(fileno=0) as connection:
        while True:
            op, deadline_ms, name_length, length = REQUEST.unpack(_read(connection, REQUEST.size))
            rest = _read(connection, name_length + length)
            signal.setitimer(signal.ITIMER_REAL, deadline_ms / 1_000)
            try:
                kind, body = b"+", engine.answer(op, rest[:name_length].decode(), rest[name_length:]).encode()
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as e:  # a panic of the engine is a BaseException
                kind, body = b"-", _said(e)
                if op != b"L":
                    engine.renew()
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.sendall(ANSWER.pack(kind, len(body)) + body)


if __name__ == "__main__":
    main()
