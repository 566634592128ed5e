"""`sovereign verify`: is what was recorded still what was written? Read from lake and journals, whether a cluster runs or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from cli.exit_codes import ExitCode
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.settings import Settings
    from cluster.storage.object_store import ObjectStore


def verify(home: Home = None, as_json: Json = False) -> None:
    """Check every segment of the lake and every journal of this home's nodes; exit 1 when something is not as it was written."""
    from cluster import wiring

    settings = settings_of(home)
    checked, faults = _lake(wiring.open_object_store(settings))
    found, broken = _journals(settings)
    data = {"lake": settings.lake, **checked, "journals": found, "faults": faults + broken}
    OUTPUT.result(data, lambda console: _render(console, data))
    if data["faults"]:
        raise typer.Exit(ExitCode.FAILED)


def _lake(store: ObjectStore) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return how many segments each stream has, and what is wrong with any."""
    from cluster.lake.layout import ROW_STREAMS, quarantine_prefix, raw_prefix
    from cluster.lake.verify import verify_raw

    counts: dict[str, Any] = {}
    faults: list[dict[str, str]] = []
    for stream in ROW_STREAMS:
        counts[stream.value] = {"segments": sum(info.key.endswith(".parquet") for info in store.list(raw_prefix(stream)))}
        for finding in verify_raw(store, stream):
            row = "" if finding.row is None else f"row {finding.row}: "
            faults.append({"where": finding.key, "problem": row + finding.problem})
        faults += [
            {"where": info.key, "problem": "is in quarantine: the key of these rows held other rows"}
            for info in store.list(quarantine_prefix(stream))
        ]
    return counts, faults


def _journals(settings: Settings) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Return what the journals of the home's nodes hold, and which were changed."""
    from cluster.journal.journal_id import list_journals
    from cluster.journal.verify import verify_journal

    joined = sorted(path.name for path in settings.nodes_dir.iterdir()) if settings.nodes_dir.is_dir() else []
    checks, bad = [], []
    for directory in [settings.of_node(name).journal_dir for name in ("", *joined)]:
        found = [verify_journal(directory, journal) for journal in list_journals(directory)]
        # The shipper may have removed an old one while it was read; what was changed is still there to be read again.
        bad += [verify_journal(directory, c.journal) for c in found if c.error]
        checks += found
    counts = {
        "journals": len(checks),
        "records": sum(c.records for c in checks),
        # What a crash cut off. It is no fault: no caller was told of it.
        "torn_bytes": sum(c.torn_bytes for c in checks if not c.alive and not c.error),
    }
    return counts, [{"where": f"journal {c.journal}", "problem": c.error} for c in bad if c.error]


def _render(console: Console, data: dict[str, Any]) -> None:
    journals = data["journals"]
    lines = [
        f"lake      {data['lake']}: {data['usage']['segments']} usage and {data['audit']['segments']} audit segments",
        f"journals  {journals['journals']} with {journals['records']} records, {journals['torn_bytes']} bytes torn by crashes",
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if data["faults"]:
        console.print(table(["not as it was written", "what is wrong"], [[f["where"], f["problem"]] for f in data["faults"]]))
    else:
        console.print("All of it is as it was written.")
