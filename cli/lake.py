"""`sovereign lake`: from raw segments to curated events, what became of every row, and whether it is all there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from cli.exit_codes import ExitCode
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.storage.object_store import ObjectStore

app = typer.Typer(help="Curate usage, see what became of it by the hour, and check it.", no_args_is_help=True)


@app.command()
def curate(home: Home = None, as_json: Json = False) -> None:
    """Curate all raw usage that is not: each event once, in `usage/events/`; exit 1 when a raw segment can't be read.

    It may run at any time and any number of times, whether a cluster runs or not.
    """
    from cluster import wiring

    with OUTPUT.progress("Curating usage."):
        report = wiring.build_curator(settings_of(home)).step()
    data = {
        "plans_made": report.planned,
        "plans_carried_out": report.executed,
        "rows": report.rows,
        "quarantined": report.reasons,
        "unreadable": report.unreadable,
    }
    OUTPUT.result(data, lambda console: _render_report(console, data))
    if report.unreadable:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def hours(home: Home = None, as_json: Json = False) -> None:
    """Show what became of every raw row by the UTC hour of its event; exit 1 when an hour's figures do not add up."""
    from cluster import wiring
    from cluster.lake.curation.conservation import hourly

    found = hourly(wiring.open_object_store(settings_of(home)))
    figures = [{"hour": hour, **dict.fromkeys(_COLUMNS, 0), **found.hours[hour]} for hour in sorted(found.hours)]
    data = {
        "hours": figures,
        "quarantined": dict(found.reasons),
        "waiting": found.waiting,
        "unbalanced": found.unbalanced(),
    }
    OUTPUT.result(data, lambda console: _render_hours(console, data))
    if data["unbalanced"]:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def verify(home: Home = None, as_json: Json = False) -> None:
    """Check raw segments, plans, events and quarantine, to the row; exit 1 when something is not as it was written."""
    from cluster import wiring

    settings = settings_of(home)
    checked, faults = lake_faults(wiring.open_object_store(settings))
    data = {"lake": settings.lake, **checked, "faults": faults}
    OUTPUT.result(data, lambda console: render_faults(console, [lake_line(data)], faults))
    if faults:
        raise typer.Exit(ExitCode.FAILED)


def lake_faults(store: ObjectStore) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return how many segments each stream has and how many plans are made and done, and what is wrong with any."""
    from cluster.journal.fact import Stream
    from cluster.lake.curation.keys import DONE_PREFIX, PLAN_PREFIX
    from cluster.lake.curation.verify_curated import verify_curated
    from cluster.lake.layout import ROW_STREAMS, quarantine_prefix, raw_prefix
    from cluster.lake.verify import verify_raw

    counts: dict[str, Any] = {}
    findings = []
    for stream in ROW_STREAMS:
        counts[stream.value] = {"segments": sum(info.key.endswith(".parquet") for info in store.list(raw_prefix(stream)))}
        # An event of usage may have been sent twice; that is for curation to find, which drops and counts it.
        findings += verify_raw(store, stream, ids_once=stream is not Stream.USAGE)
    counts["curation"] = {
        "plans": sum(1 for _ in store.list(PLAN_PREFIX)),
        "done": sum(1 for _ in store.list(DONE_PREFIX)),
    }
    findings += verify_curated(store)
    faults = [{"where": f.key, "problem": f.problem if f.row is None else f"row {f.row}: {f.problem}"} for f in findings]
    faults += [
        {"where": info.key, "problem": "is in quarantine: the key of these rows held other rows"}
        for stream in ROW_STREAMS
        for info in store.list(f"{quarantine_prefix(stream)}ingest_date=")
    ]
    return counts, faults


def lake_line(data: dict[str, Any]) -> str:
    """Return in a line how much of the lake was checked."""
    curation = data["curation"]
    return (
        f"lake      {data['lake']}: {data['usage']['segments']} usage and {data['audit']['segments']} audit segments, "
        f"{curation['done']} of {curation['plans']} plans carried out"
    )


def render_faults(console: Console, lines: list[str], faults: list[dict[str, str]]) -> None:
    """Print what was checked, and a table of what is wrong, or that nothing is."""
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if faults:
        console.print(table(["not as it was written", "what is wrong"], [[f["where"], f["problem"]] for f in faults]))
    else:
        console.print("All of it is as it was written.")


_COLUMNS = ("raw", "curated", "quarantined", "duplicate", "superseded", "settled", "lost", "revived")


def _render_report(console: Console, data: dict[str, Any]) -> None:
    rows = data["rows"]
    if not data["plans_carried_out"]:
        console.print("There was nothing to curate.")
    else:
        console.print(
            f"{rows['raw']} raw rows in {data['plans_carried_out']} plans: {rows.get('curated', 0)} curated, "
            f"{rows.get('quarantined', 0)} in quarantine, {rows.get('duplicate', 0)} duplicates, "
            f"{rows.get('superseded', 0)} superseded losses.",
            highlight=False,
            soft_wrap=True,
        )
    if data["quarantined"]:
        console.print(table(["in quarantine for", "rows"], sorted(map(list, data["quarantined"].items())), right=["rows"]))
    if data["unreadable"]:
        console.print(table(["waits", "why"], sorted(map(list, data["unreadable"].items()))))


def _render_hours(console: Console, data: dict[str, Any]) -> None:
    if not data["hours"]:
        console.print("Nothing is curated yet: `sovereign lake curate`.")
    else:
        columns = ["hour", *_COLUMNS]
        console.print(table(columns, [[f[c] for c in columns] for f in data["hours"]], right=list(_COLUMNS)))
    if data["waiting"]:
        console.print(f"{len(data['waiting'])} raw segments wait to be curated.", highlight=False)
    for hour in data["unbalanced"]:
        console.print(f"The hour {hour} does not add up: raw rows are not what became of them.", highlight=False)
