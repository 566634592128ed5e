"""`sovereign lake` on a lake under a home of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.lake import curate, hours, verify
from cli.output import OUTPUT
from cluster.storage.local_object_store import LocalObjectStore
from tests.lake_raw import event, put, segment

Run = Callable[..., Any]


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    """Two segments: three calls, one of them twice, and a row that can't be billed."""
    store = LocalObjectStore(tmp_path / "lake")
    put(store, segment([event(1), event(2)], 1), segment([event(2), event(3), event(4, cpu_us=-1)], 2))
    return store


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command and return what it says."""

    def run(command: Callable[[Path], None], *, code: int = 0, as_json: bool = True) -> Any:
        OUTPUT.as_json = as_json
        if code:
            with pytest.raises(typer.Exit) as ended:
                command(tmp_path)
            assert ended.value.exit_code == code
        else:
            command(tmp_path)
        said = capsys.readouterr().out
        return json.loads(said) if as_json else said

    yield run
    OUTPUT.as_json = False


def test_a_lake_is_curated_and_every_row_accounted_for(store: LocalObjectStore, run: Run) -> None:
    """By the command, by the hour, and by the check; a second time there is nothing to do."""
    assert run(curate) == {
        "plans_made": 1,
        "plans_carried_out": 1,
        "rows": {"raw": 5, "curated": 3, "settled": 3, "duplicate": 1, "quarantined": 1},
        "quarantined": {"negative": 1},
        "unreadable": {},
    }
    assert run(curate)["plans_carried_out"] == 0
    found = run(hours)
    (hour,) = found["hours"]
    assert (hour["hour"], hour["raw"], hour["curated"], hour["duplicate"], hour["quarantined"]) == ("2026-09-21T14", 5, 3, 1, 1)
    assert (found["waiting"], found["unbalanced"]) == ([], [])
    said = run(verify)
    assert (said["faults"], said["usage"], said["curation"]) == ([], {"segments": 2}, {"plans": 1, "done": 1})


def test_what_is_missing_or_damaged_ends_with_1(store: LocalObjectStore, run: Run) -> None:
    """A segment that can't be read, and an object of events that is gone."""
    (store.root / "usage/raw/v1/ingest_date=2026-09-21/writer=shipper.n1/e1-00000003.parquet").write_bytes(b"PAR1")
    assert len(run(curate, code=1)["unreadable"]) == 1
    assert run(hours)["waiting"] == ["usage/raw/v1/ingest_date=2026-09-21/writer=shipper.n1/e1-00000003.parquet"]
    key = "usage/events/v1/event_date=2026-09-21/p00000001-1.parquet"
    (store.root / key).unlink()
    assert {"where": key, "problem": "is missing, with its 3 rows"} in run(verify, code=1)["faults"]


def test_a_person_reads_sentences_and_tables(store: LocalObjectStore, run: Run) -> None:
    """Before there is anything, after, and when something is wrong."""
    assert "Nothing is curated yet" in run(hours, as_json=False)
    assert "2 raw segments wait" in run(hours, as_json=False)
    assert "5 raw rows in 1 plans: 3 curated, 1 in quarantine, 1 duplicates" in run(curate, as_json=False)
    assert "There was nothing to curate." in run(curate, as_json=False)
    assert "2026-09-21T14" in run(hours, as_json=False)
    (store.root / "usage/done/00000001.json").write_bytes(b"{}")
    assert "not as it was written" in run(verify, as_json=False, code=1)
