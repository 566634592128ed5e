"""Calls and facts for the tests of journals and the lake."""

from __future__ import annotations

from pathlib import Path

from cluster.identity.ids import uuid7
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId, list_journals
from cluster.journal.reader import JournalReader
from cluster.journal.usage_event import CallAdmitted, Outcome, UsageEvent, UsageKind
from cluster.journal.writer import JournalWriter

AGENT = "agent.acme.planner-001"
START_US = 1_790_000_000_000_000


def admitted(event_id: str = "", **changes: object) -> CallAdmitted:
    """Return a call that an agent took on."""
    event_id = event_id or uuid7()
    values: dict[str, object] = {
        "event_id": event_id,
        "start_time": START_US,
        "tenant_id": "acme",
        "project_id": "default",
        "agent_id": "planner-001",
        "agent_version": "1",
        "invocation_id": f"inv-{event_id}",
        "reservation_id": f"res-{event_id}",
        "model": "scripted:echo",
    }
    return CallAdmitted(**(values | changes))  # type: ignore[arg-type]  # the tests' own values


def final(call: CallAdmitted | None = None, **changes: object) -> UsageEvent:
    """Return the final usage event of a call."""
    call = call or admitted()
    values: dict[str, object] = {
        "event_id": call.event_id,
        "kind": UsageKind.FINAL,
        "event_time": call.start_time + 1_000,
        "start_time": call.start_time,
        "tenant_id": call.tenant_id,
        "project_id": call.project_id,
        "agent_id": call.agent_id,
        "agent_version": call.agent_version,
        "invocation_id": call.invocation_id,
        "reservation_id": call.reservation_id,
        "model": call.model,
        "outcome": Outcome.OK,
        "billable": True,
        "tokens_input_uncached": 1_200,
        "tokens_output": 34,
        "cpu_us": 5_600,
        "latency_us": 1_000,
    }
    return UsageEvent(**(values | changes))  # type: ignore[arg-type]  # the tests' own values


def call_fact(call: CallAdmitted) -> Fact:
    return Fact(Stream.CALL, call.to_body())


def usage_fact(event: UsageEvent) -> Fact:
    return Fact(Stream.USAGE, event.to_body())


def make_calls(writer: JournalWriter, count: int) -> list[str]:
    """Admit and finish `count` calls; returns their event ids."""
    ids = []
    for _ in range(count):
        call = admitted()
        writer.append(call_fact(call))
        writer.append(usage_fact(final(call)))
        ids.append(call.event_id)
    return ids


def all_facts(directory: Path, journal: JournalId) -> list[tuple[int, Fact]]:
    reader, found = JournalReader(directory, journal), []
    while facts := reader.read():
        found += facts
    return found


def everything(directory: Path) -> list[Fact]:
    return [fact for journal in list_journals(directory) for _, fact in all_facts(directory, journal)]
