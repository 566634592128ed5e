"""The one logging set-up: every line is one ECS JSON object with the ids of what it was written for, and without secrets."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from cluster.clock import utc
from cluster.telemetry.redaction import redact, redact_field

ECS_VERSION = "8.11.0"
MAX_FILE_BYTES = 16 << 20
OLD_FILES_KEPT = 3
# Log files of ended processes that stay in the folder; agents come and go by the thousand.
ENDED_PROCESSES_KEPT = 200
# A longer text is cut: a log line is read by people and by shippers with a limit of their own.
MAX_TEXT = 32 << 10

_NOISY = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "langchain_openai",
    "urllib3",
    "botocore",
    "boto3",
    "s3transfer",
    "kazoo",
    "asyncio",
    "filelock",
    "openai",
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_BOUND: ContextVar[dict[str, str]] = ContextVar("sovereign_log_ids")


@contextmanager
def bind(
    *,
    request_id: str | None = None,
    tenant: str | None = None,
    agent: str | None = None,
    invocation_id: str | None = None,
    trace_id: str | None = None,
) -> Iterator[None]:
    """Put these ids on every line that this task, and the tasks it starts, write inside the `with`; empty ones change nothing."""
    ids = {
        "http.request.id": request_id,
        "labels.tenant": tenant,
        "labels.agent": agent,
        "labels.invocation_id": invocation_id,
        "trace.id": trace_id,
    }
    token = _BOUND.set(_BOUND.get({}) | {k: str(v) for k, v in ids.items() if v})
    try:
        yield
    finally:
        _BOUND.reset(token)


class EcsFormatter(logging.Formatter):
    """Writes a record as one line of JSON. What `extra` brought becomes `labels.<name>`."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._service = f"sovereign-{component}"

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        line: dict[str, Any] = {
            "@timestamp": utc(int(record.created * 1_000_000)).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "log.level": record.levelname.lower(),
            "message": _text(_message(record)),
            "ecs.version": ECS_VERSION,
            "service.name": self._service,
            "log.logger": record.name,
            "process.pid": record.process,
        }
        for name, value in vars(record).items():
            # Ray's record factory adds private fields of its own once it is imported.
            if name not in _STANDARD and not name.startswith("_"):
                line[f"labels.{name}"] = _label(name, value)
        line |= {name: _text(value) for name, value in _BOUND.get({}).items()}
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            line["error.type"] = f"{kind.__module__}.{kind.__qualname__}"
            line["error.message"] = _text(_safely(error))
            line["error.stack_trace"] = _text("".join(traceback.format_exception(*record.exc_info, limit=50)))
        # ASCII alone: line separators of Unicode would split the line for some readers, and lone surrogates stop others.
        return json.dumps(line, ensure_ascii=True, separators=(",", ":"))


def configure_logging(component: str, *, level: str, directory: Path | None = None, stderr: bool | None = None) -> None:
    """Send all logging of this process through the one formatter; a second call replaces the first.

    With a `directory` lines go to `<directory>/<component>-<pid>.jsonl` (0600, rotated at 16 MiB, three old ones kept), and to
    stderr only if asked for; without one, to stderr. `level` is the least severe that is written ("INFO").
    """
    handlers: list[logging.Handler] = []
    if directory is not None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _forget_ended(directory)
        path = directory / f"{component}-{os.getpid()}.jsonl"
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        handlers.append(
            RotatingFileHandler(path, maxBytes=MAX_FILE_BYTES, backupCount=OLD_FILES_KEPT, encoding="utf-8", delay=True)
        )
    if stderr if stderr is not None else directory is None:
        handlers.append(logging.StreamHandler(sys.stderr))
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, EcsFormatter)]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(EcsFormatter(component))
        root.addHandler(handler)
    root.setLevel(level)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _forget_ended(directory: Path) -> None:
    """Remove the oldest files of processes that have ended, beyond the number kept."""
    ended: list[tuple[float, Path]] = []
    for path in directory.glob("*.jsonl*"):
        pid = path.name.partition(".jsonl")[0].rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            try:
                ended.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # another process tidies at the same time
                continue
    for _, path in sorted(ended)[: max(0, len(ended) - ENDED_PROCESSES_KEPT)]:
        path.unlink(missing_ok=True)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a wrong format string must not lose the line
        return f"{record.msg!r} (its arguments do not fit)"


def _safely(value: object) -> str:
    try:
        return str(value)
    except Exception:  # some errors cannot print themselves
        return f"<{type(value).__name__}>"


def _label(name: str, value: object) -> Any:
    try:
        clean = redact_field(name, value)
    except Exception:  # a value that cannot print itself
        return f"<{type(value).__name__}>"
    return (
        clean
        if clean is None or isinstance(clean, bool | int | float)
        else _text(clean if isinstance(clean, str) else json.dumps(clean))
    )


def _text(text: str) -> str:
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}… ({len(text) - MAX_TEXT} more characters)"
    return redact(text)
