"""Log lines: one JSON object each, with the ids of what they are about, and never a secret."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.telemetry.ecs_log import ENDED_PROCESSES_KEPT, MAX_TEXT, EcsFormatter, bind, configure_logging
from cluster.telemetry.redaction import redact, redact_field
from tests.sizes import soak

log = logging.getLogger("sovereign.test")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [h for h in root.handlers if h not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def failing(error: Exception) -> None:
    raise error


def lines(directory: Path) -> list[dict[str, Any]]:
    (path,) = directory.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="ascii").split("\n") if line]


def test_a_line_is_an_ecs_document(tmp_path: Path) -> None:
    """Time, level, message, logger, service and process stand under their ECS names, in a file that only its owner reads."""
    configure_logging("gateway", level="INFO", directory=tmp_path)
    log.info("%d calls", 3, extra={"queue_us": 17, "door": "openai"})
    log.debug("not written")
    (line,) = lines(tmp_path)
    assert line.pop("@timestamp").endswith("Z")
    assert line == {
        "log.level": "info",
        "message": "3 calls",
        "ecs.version": "8.11.0",
        "service.name": "sovereign-gateway",
        "log.logger": "sovereign.test",
        "process.pid": os.getpid(),
        "labels.queue_us": 17,
        "labels.door": "openai",
    }
    path = tmp_path / f"gateway-{os.getpid()}.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_bound_ids_follow_a_task_and_no_other(tmp_path: Path) -> None:
    """Ids nest, are inherited by tasks that start inside, and end with their block."""
    configure_logging("agent", level="INFO", directory=tmp_path)

    async def work(name: str) -> None:
        with bind(invocation_id=name):
            await asyncio.sleep(0)
            log.info(name)

    with bind(request_id="r1", tenant="acme", agent=None, trace_id=""):
        await asyncio.gather(work("a"), work("b"))
    log.info("after")
    a, b, after = lines(tmp_path)
    assert (a["message"], a["labels.invocation_id"]) == ("a", "a")
    assert (b["message"], b["labels.invocation_id"]) == ("b", "b")
    assert a["http.request.id"] == b["http.request.id"] == "r1"
    assert a["labels.tenant"] == "acme"
    assert not {"labels.agent", "trace.id"} & set(a)
    assert not {"http.request.id", "labels.tenant"} & set(after)


def test_configuring_again_replaces_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that is set up twice writes each line once; without a folder it writes to stderr."""
    configure_logging("a", level="INFO", directory=tmp_path / "first")
    configure_logging("b", level="INFO")
    log.warning("once")
    assert lines(tmp_path / "first") == []
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["service.name"] == "sovereign-b"


@pytest.mark.parametrize(
    "text",
    [
        "a\nb",
        "a\r\nb",
        'x"}\n{"log.level":"error","message":"forged"',
        "a\u2028b\u2029c\x85d\x0b\x0c",
        "\x00\x1b[31m",
        "\ud800",
        "\u202e",
    ],
)
def test_threat_55_a_message_cannot_forge_a_line(tmp_path: Path, text: str) -> None:
    """Line ends, control characters and broken surrogates are escaped, wherever they come. Control: EcsFormatter.format."""
    configure_logging("agent", level="INFO", directory=tmp_path)
    with bind(request_id=text):
        try:
            failing(ValueError(text))
        except ValueError:
            log.exception(text, extra={"free": text})
    (path,) = tmp_path.glob("*.jsonl")
    raw = path.read_bytes()
    assert raw.count(b"\n") == 1
    assert len(raw.decode("ascii").splitlines()) == 1
    line = json.loads(raw)
    assert line["log.level"] == "error"
    assert line["message"] == line["error.message"] == line["http.request.id"] == line["labels.free"] == text


SECRET = "s3cr3t-V4lue"


@pytest.mark.parametrize(
    "text",
    [
        f"key sk-sov-{SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization={SECRET}",
        f"got bearer {SECRET}, refused",
        f"{{'api_key': '{SECRET}', 'model': 'x'}}",
        f'{{"password": "two words {SECRET}"}}',
        f"client_secret={SECRET}&grant=x",
        f"X-Api-Key: {SECRET}",
        f"RAY_AUTH_TOKEN={SECRET}",
        f"https://user:{SECRET}@host/path",
        f"token: {SECRET}",
        f"Cookie: {SECRET}",
        f"openai key sk-{SECRET}-0123456789abcdef",
        f"jwt eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
        f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}",
    ],
)
def test_threat_55_secrets_are_taken_out_everywhere(tmp_path: Path, text: str) -> None:
    """In the message, its arguments, extra fields, ids, errors and stack traces. Control: cluster/telemetry/redaction.py."""
    configure_logging("agent", level="INFO", directory=tmp_path)
    with bind(trace_id=text):
        try:
            failing(RuntimeError(text))
        except RuntimeError:
            log.exception("said %s", text, extra={"free": text, "nested": {"list": [text]}})
    (path,) = tmp_path.glob("*.jsonl")
    assert SECRET not in path.read_text()
    assert path.read_text().count("[redacted]") >= 6


@pytest.mark.parametrize(
    "name", ["token", "api_key", "apiKey", "auth_token", "PASSWORD", "client_secret", "session_key", "Authorization"]
)
def test_fields_with_secret_names_are_taken_out_whatever_they_hold(name: str) -> None:
    """A field's name is enough, at any depth."""
    assert redact_field(name, "harmless") == "[redacted]"
    assert redact_field("outer", {"a": [{name: 17}]}) == {"a": [{name: "[redacted]"}]}


@pytest.mark.parametrize(
    "text", ["max_tokens=512", "tokens_output: 17", "2 calls, 0 refused", "agent planner is live", "risk-sov", "secretary: Ann"]
)
def test_what_is_no_secret_is_left(text: str) -> None:
    """Counting tokens is daily business."""
    assert redact(text) == text


def test_a_hostile_text_costs_linear_time_and_bounded_space() -> None:
    """Long runs that nearly match every pattern are worked off at once, and a very long message is cut."""
    for text in (
        "a-" * 500_000,
        "token" * 200_000,
        "token='" + "\\" * 900_000,
        "Bearer " * 140_000,
        "://x:" * 200_000,
        "eyJ" * 300_000,
    ):
        record = logging.LogRecord("x", logging.INFO, "f", 1, text, None, None)
        line = EcsFormatter("x").format(record)
        assert len(line) < 4 * MAX_TEXT


class Unprintable:
    def __str__(self) -> str:
        raise ValueError("no")


def test_a_line_is_never_lost_to_what_it_should_say() -> None:
    """A wrong format, an argument or an error that cannot be printed still gives a line."""
    formatter = EcsFormatter("x")
    wrong = logging.LogRecord("x", logging.INFO, "f", 1, "%d and %d", ("one",), None)
    assert "do not fit" in json.loads(formatter.format(wrong))["message"]
    mute = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (Unprintable(),), None)
    mute.thing = Unprintable()
    assert json.loads(formatter.format(mute))["labels.thing"] == "<Unprintable>"

    class MuteError(Exception):
        __str__ = Unprintable.__str__

    failed = logging.LogRecord("x", logging.INFO, "f", 1, "m", None, (MuteError, MuteError(), None))
    assert json.loads(formatter.format(failed))["error.message"] == "<MuteError>"


def test_old_files_of_ended_processes_are_tidied(tmp_path: Path) -> None:
    """The newest are kept, and the file of a live process is never touched."""
    gone = 4_194_304  # beyond the largest process id of Linux
    for i in range(ENDED_PROCESSES_KEPT + 5):
        path = tmp_path / f"agent-{gone + i}.jsonl"
        path.touch()
        os.utime(path, (i, i))
    live = tmp_path / f"agent-{os.getppid()}.jsonl"
    live.touch()
    os.utime(live, (0, 0))
    configure_logging("x", level="INFO", directory=tmp_path)
    left = {p.name for p in tmp_path.glob("agent-*")}
    assert live.name in left
    assert left - {live.name} == {f"agent-{gone + i}.jsonl" for i in range(5, ENDED_PROCESSES_KEPT + 5)}


@given(text=st.text(alphabet=st.characters(), max_size=300))
@settings(max_examples=soak(200, 20_000), deadline=None)
def test_any_text_is_one_line_that_reads_back(text: str) -> None:
    """Whatever is logged, the line is one ASCII line of JSON."""
    line = EcsFormatter("x").format(logging.LogRecord("x", logging.INFO, "f", 1, "%s", (text,), None))
    assert "\n" not in line
    assert line.isascii()
    assert isinstance(json.loads(line)["message"], str)
