"""Streamed answers as their client sees them: when the first piece of text is there, and how many pieces come a second."""

from __future__ import annotations

import json
import socket
import statistics
import time
from urllib.parse import urlsplit

# The pieces of a usual answer, and of a long one. Both sides' events begin a piece of text in these bytes.
PIECES = [f"word{i} " for i in range(16)]
LONG = ["word "] * 4_000
_FIRST = b'"content":"word'
_END = b"\r\n0\r\n\r\n"


def script(pieces: list[str]) -> str:
    """Return what makes the scripted model answer in these pieces."""
    return json.dumps({"script": [{"stream": pieces}]})


class Client:
    """One kept connection, without any library whose time would count on both sides."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        self._head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, agent_id: str, pieces: list[str]) -> tuple[float, float]:
        """Return the seconds until the first piece of text and until the end; raises RuntimeError for another answer."""
        body = json.dumps({"model": agent_id, "stream": True, "messages": [{"role": "user", "content": script(pieces)}]})
        began = time.perf_counter()
        self._socket.sendall(f"{self._head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        seen, first = bytearray(), 0.0
        while not seen.endswith(_END):
            got = self._socket.recv(1 << 18)
            seen += got
            if not first and _FIRST in seen:
                first = time.perf_counter() - began
            if not got or not seen.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"the stream broke off: {bytes(seen[:300])!r}")
        if not first:
            raise RuntimeError(f"no text came: {bytes(seen[:300])!r}")
        return first, time.perf_counter() - began

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def first_chunk_ms(url: str, headers: dict[str, str], agent_id: str, seconds: float) -> float:
    """Return the median of milliseconds until the first piece, of one stream after the other."""
    client = Client(url, headers)
    ends, taken = time.perf_counter() + seconds, []
    while time.perf_counter() < ends:
        taken.append(client.ask(agent_id, PIECES)[0])
    client.close()
    return statistics.median(taken) * 1_000


def chunks_per_s(url: str, headers: dict[str, str], agent_id: str) -> float:
    """Return how many pieces of a long answer come a second."""
    client = Client(url, headers)
    _, took = client.ask(agent_id, LONG)
    client.close()
    return len(LONG) / took
