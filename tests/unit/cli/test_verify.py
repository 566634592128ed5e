"""`sovereign verify` on a lake and journals under a home of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.output import OUTPUT
from cli.verify import verify
from cluster.clock import FakeClock
from cluster.journal.writer import JournalWriter
from cluster.lake.layout import quarantine_key
from cluster.lake.ship import Shipper
from cluster.storage.local_object_store import LocalObjectStore
from tests.lake_samples import AGENT, make_calls


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Ten calls in two segments, and a journal that is still open."""
    clock = FakeClock()
    with (
        JournalWriter(tmp_path / "journal", AGENT, 1, clock=clock) as writer,
        Shipper.open(tmp_path / "journal", LocalObjectStore(tmp_path / "lake"), "n1", clock=clock) as shipper,
    ):
        for _ in range(2):
            make_calls(writer, 5)
            shipper.step()
    OUTPUT.as_json = True
    yield tmp_path
    OUTPUT.as_json = False


def segments(home: Path) -> list[Path]:
    return sorted((home / "lake" / "usage").rglob("*.parquet"))


def verified(home: Path, capsys: pytest.CaptureFixture[str], *, code: int) -> Any:
    if code:
        with pytest.raises(typer.Exit) as ended:
            verify(home)
        assert ended.value.exit_code == code
    else:
        verify(home)
    return json.loads(capsys.readouterr().out)


def test_a_record_as_it_was_written_has_no_faults(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the command says how much it read, so that nothing read is not taken for nothing found."""
    said = verified(home, capsys, code=0)
    assert (said["usage"], said["faults"]) == ({"segments": 2}, [])
    assert said["journals"]["journals"] == 2
    assert said["journals"]["records"] >= 20


def test_what_was_changed_is_named_and_the_exit_code_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A segment that is gone, one in quarantine, and a byte of a journal."""
    first, second = segments(home)
    key = str(first.relative_to(home / "lake"))
    LocalObjectStore(home / "lake").put_if_absent(quarantine_key(key, "ab" * 32), b"rows", sha256="")
    first.unlink()
    written = next((home / "journal" / AGENT).rglob("*.seg"))
    data = bytearray(written.read_bytes())
    data[len(data) // 2] ^= 1
    written.write_bytes(data)
    faults = {fault["where"]: fault["problem"] for fault in verified(home, capsys, code=1)["faults"]}
    assert "no segment covers facts" in faults[str(second.relative_to(home / "lake"))]
    assert "is in quarantine" in faults[quarantine_key(key, "ab" * 32)]
    assert written.name in faults[f"journal {AGENT}/e1"]


def test_a_person_reads_what_was_checked_and_what_is_wrong(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two lines and a verdict, or a table of what is wrong."""
    OUTPUT.as_json = False
    verify(home)
    assert "All of it is as it was written." in capsys.readouterr().out
    segments(home)[0].unlink()
    with pytest.raises(typer.Exit):
        verify(home)
    assert "no segment covers facts" in capsys.readouterr().out
