"""`sovereign price` as a process: what it prints and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from cluster.billing.money import major
from cluster.clock import FakeClock, utc
from cluster.journal.usage_event import lost_event
from cluster.journal.writer import JournalWriter
from cluster.lake.ship import Shipper
from cluster.settings import Settings
from cluster.wiring import open_object_store
from tests.lake_samples import AGENT, START_US, admitted, final, usage_fact
from tests.unit.billing.cards import HEAD

CARD = f"""{HEAD.replace("2026", "1970")}rules:
  - {{id: calls, kind: per_unit, meter: calls, price: "0.01"}}
  - {{id: words, kind: package, meter: tokens_output, price: "1", size: 1000}}
free: [tokens_input_uncached, tokens_cache_read, tokens_cache_write, tokens_reasoning, tool_calls, cpu_us, latency_us, queue_us,
  reserved_cpu_milli_ms, mem_mib_ms]
"""


def price(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "cli.main", "price", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout


def test_check_names_what_is_wrong_with_each_card(tmp_path: Path) -> None:
    """A price that is a float, a file that is none, a version that overlaps: all at once, and exit code 1."""
    texts = {"first": CARD, "second": CARD.replace("version: 1", "version: 2"), "float": CARD.replace('"0.01"', "0.01")}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    code, said = price("check", "--json", *(str(tmp_path / f"{name}.yaml") for name in (*texts, "nowhere")))
    problems = {Path(p["card"]).stem: p["problem"] for p in json.loads(said)["problems"]}
    assert code == 1
    assert set(problems) == {"float", "nowhere", "standard"}
    assert "in quotes" in problems["float"]
    assert "overlap" in problems["standard"]


def test_simulate_is_last_months_usage_under_another_card(tmp_path: Path) -> None:
    """Each event once, a loss that turned out to be none not at all; each tenant by itself."""
    settings, clock = Settings(home=tmp_path), FakeClock()
    month = f"{utc(START_US):%Y-%m}"
    kept = admitted(tenant_id="acme")
    events = [
        final(kept, tokens_output=600),
        final(tenant_id="acme", tokens_output=500),
        final(tenant_id="rival", tokens_output=1),
    ]
    with Shipper.open(settings.journal_dir, open_object_store(settings), "n1", clock=clock) as shipper:
        with JournalWriter(settings.journal_dir, AGENT, shipper._writer.epoch, clock=clock) as writer:
            writer.append_many(map(usage_fact, [lost_event(kept), *events, events[1]]))
        shipper.step()
    (tmp_path / "card.yaml").write_text(CARD)
    code, said = price("simulate", str(tmp_path / "card.yaml"), "--period", month, "--home", str(tmp_path), "--json")
    bills = {bill["tenant"]: bill for bill in json.loads(said)["bills"]}
    assert code == 0
    assert {name: major(bill["total_minor"], "USD") for name, bill in bills.items()} == {"acme": "2.02", "rival": "1.01"}
    assert {line["meter"]: line["quantity"] for line in bills["acme"]["lines"]} == {"calls": 2, "tokens_output": 1100}
