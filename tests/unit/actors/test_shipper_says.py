"""What the shipper tells the other processes of its node. Shipper, journal and lake are real; no actor runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors import shipper
from actors.shipper import ShipperActor
from cluster.journal.backlog import Backlog
from cluster.journal.writer import JournalWriter
from cluster.settings import Settings
from cluster.telemetry.metrics import Metrics
from tests.lake_samples import AGENT, make_calls


async def test_what_was_measured_before_a_fact_is_not_said_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a gate that was closed would open for a second while the lake is away."""
    monkeypatch.setattr(shipper, "configure_logging", lambda *a, **k: None)
    monkeypatch.setattr(shipper, "_serve_metrics", lambda *a: None)
    monkeypatch.setattr(Metrics, "of_process", Metrics)
    # By the test alone, and not also every second.
    monkeypatch.setattr(shipper, "SAY_INTERVAL_S", 3600.0)
    settings = Settings.load(home=tmp_path, seal_interval_s=3600.0)
    settings.metrics_dir.mkdir(parents=True)
    actor = ShipperActor(settings.to_json(), 0)
    lake = settings.home / "lake"
    with JournalWriter(settings.journal_dir, AGENT, 1) as agent:
        make_calls(agent, 2)
        if lake.exists():
            lake.rename(settings.home / "away")
        lake.write_text("no folder, so nothing can be stored below it")

        def shipped(report: Any) -> None:
            assert report.store_error
            make_calls(agent, 2)

        monkeypatch.setattr(actor._metrics, "shipped", shipped)
        actor._ship()
        said = Backlog.read(settings.journal_dir)
        assert said is not None
        assert said.waiting_bytes == actor._shipper.waiting_bytes() > 0
        lake.unlink()
    monkeypatch.undo()
    await actor.stop()
