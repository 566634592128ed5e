"""`sovereign logs`: what the platform's processes wrote, in order of time, as lines for people."""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, printable
from cluster.errors import NotFoundError

FOLLOW_S = 0.25
BLOCK_BYTES = 1 << 16
# What a line for people begins with; the rest follows as name=value.
HEAD = ("@timestamp", "log.level", "message")
# What only --json shows: the same on every line, or longer than a line.
LEFT_OUT = ("ecs.", "process.", "service.", "log.logger", "error.stack_trace")


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One line of one component's log; lines of all components sort by their time."""

    at: str
    component: str
    text: str


def logs(
    component: Annotated[str | None, typer.Option(help="Only this component; without it, all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is written from now on, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(min=0, help="How many of the last lines to begin with.")] = 50,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what the platform's processes wrote; --json has every field."""
    folder = settings_of(home).log_dir
    paths = _paths(folder, component)
    ends = {path: path.stat().st_size for path in paths}
    last = deque(heapq.merge(*(_tail(path, lines, ends[path]) for path in paths)), maxlen=lines)
    for line in last:
        _show(line)
    while follow:
        time.sleep(FOLLOW_S)
        for path in _paths(folder, component):
            with contextlib.suppress(FileNotFoundError):  # tidied away between the look and the reading
                for line in _since(path, ends):
                    _show(line)


def _paths(folder: Path, component: str | None) -> list[Path]:
    paths = sorted([*folder.glob("*.jsonl"), *folder.glob("*.log")])
    chosen = [path for path in paths if component is None or _component(path) == component]
    if not chosen:
        known = ", ".join(sorted({_component(path) for path in paths}))
        what = f"No component {component!r} has a log" if component is not None else "There is no log"
        hint = f"There are: {known}." if known else "Logs begin with `sovereign up`."
        raise NotFoundError(f"{what} in {folder}.", hint=hint)
    return chosen


def _component(path: Path) -> str:
    """`governance-4242.jsonl` is the log of the governance process 4242."""
    name, _, number = path.stem.rpartition("-")
    return name if name and number.isdigit() else path.stem


def _tail(path: Path, count: int, end: int) -> Iterator[Line]:
    """Return the last `count` lines of a file before `end`, reading from its end block by block."""
    with path.open("rb") as file:
        begin, found = end, b""
        while begin > 0 and found.count(b"\n") <= count:
            begin = max(0, begin - BLOCK_BYTES)
            file.seek(begin)
            found = file.read(end - begin)
    return _parse(path, found.splitlines()[-count:] if count else [])


def _since(path: Path, ends: dict[Path, int]) -> Iterator[Line]:
    """Return the whole lines written after the end that was seen last, and remember the new end."""
    with path.open("rb") as file:
        seen = ends.get(path, 0)
        # A file that became shorter was rotated: what is in it now is new.
        begin = seen if seen <= os.fstat(file.fileno()).st_size else 0
        file.seek(begin)
        written = _whole_lines(file)
        ends[path] = begin + len(written)
    return _parse(path, written.splitlines())


def _whole_lines(file: IO[bytes]) -> bytes:
    found = file.read()
    return found[: found.rfind(b"\n") + 1]


def _parse(path: Path, raw: list[bytes]) -> Iterator[Line]:
    at = ""  # a line without a time belongs to the one before it
    for each in raw:
        text = each.decode(errors="replace")
        document = _document(text)
        at = str(document.get("@timestamp", at)) if document else at
        yield Line(at, _component(path), text)


def _document(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _show(line: Line) -> None:
    document = _document(line.text)
    if OUTPUT.as_json:
        OUTPUT.record({"component": line.component, **(document or {"message": line.text})})
        return
    if not document:
        print(f"{line.component}: {printable(line.text)}", flush=True)
        return
    level = _field(document, "log.level") or ""
    head = f"{line.at} {str(level).upper():7} {line.component}: {_field(document, 'message') or ''}"
    rest = " ".join(f"{k}={v}" for k, v in _flat(document) if k not in HEAD and not k.startswith(LEFT_OUT))
    # One line of a log is one line here, whatever was put into it.
    print(printable(f"{head} {rest}".strip()).replace("\n", "⏎"), flush=True)


def _field(document: dict[str, Any], dotted: str) -> Any:
    return dict(_flat(document)).get(dotted)


def _flat(document: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
