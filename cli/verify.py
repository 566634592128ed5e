"""`sovereign verify`: is what was recorded still what was written? Read from lake and journals, whether a cluster runs or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from cli.exit_codes import ExitCode
from cli.lake import lake_faults, lake_line, render_faults
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.settings import Settings


def verify(home: Home = None, as_json: Json = False) -> None:
    """Check every segment of the lake and every journal of this home's nodes; exit 1 when something is not as it was written."""
    from cluster import wiring

    settings = settings_of(home)
    checked, faults = lake_faults(wiring.open_object_store(settings))
    found, broken = _journals(settings)
    data = {"lake": settings.lake, **checked, "journals": found, "faults": faults + broken}
    OUTPUT.result(data, lambda console: _render(console, data))
    if data["faults"]:
        raise typer.Exit(ExitCode.FAILED)


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
    line = f"journals  {journals['journals']} with {journals['records']} records, {journals['torn_bytes']} bytes torn by crashes"
    render_faults(console, [lake_line(data), line], data["faults"])
