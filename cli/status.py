"""`sovereign status`: what runs under this home, and what of it is only advisory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from cli.exit_codes import ExitCode
from cli.http import ApiClient
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table
from cluster.errors import SovereignError

if TYPE_CHECKING:
    from rich.console import Console

UNKNOWN = "not known yet"
WEAK = (
    "The sandbox is weak: a tool can read and write what this user can. Install bubblewrap, or run no tool that you did not read."
)


def status(home: Home = None, as_json: Json = False) -> None:
    """Say whether the cluster runs, and how it is."""
    from actors.run_state import read_state

    settings = settings_of(home)
    state = read_state(settings)
    if state is None or not state.alive:
        data: dict[str, Any] = {"running": False, "home": str(settings.home)}
        OUTPUT.result(data, lambda console: console.print(f"Nothing runs under {settings.home}", markup=False, highlight=False))
        raise typer.Exit(ExitCode.UNAVAILABLE)
    data = {
        "running": True,
        "status": state.status,
        "home": str(settings.home),
        "http_url": state.http_url,
        "metrics_url": state.metrics_url,
        "cluster_id": state.cluster_id,
        "pid": state.pid,
        "started_at": state.started_at,
        "ports": state.ports,
    }
    failure: SovereignError | None = None
    if state.status == "ready":
        try:
            with ApiClient(settings) as api:
                data["cluster"] = api.request("GET", "/api/v1/status")
        except SovereignError as e:
            failure = e
            data["error"] = e.to_problem()
    OUTPUT.result(data, lambda console: _render(console, data))
    if failure is not None or state.status != "ready":
        if failure is not None and not OUTPUT.as_json:
            OUTPUT.fail(failure)
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _render(console: Console, data: dict[str, Any]) -> None:
    cluster = data.get("cluster") or {}
    rows = [[name, data[name]] for name in ("status", "http_url", "metrics_url", "home", "cluster_id", "pid")]
    rows += _flat({name: value for name, value in cluster.items() if name not in {"live", "sandbox"}})
    sandbox = cluster.get("sandbox") or {}
    rows += [[f"tools: {name}", value] for name, value in sandbox.items()]
    drawn = table(["", ""], rows)
    drawn.show_header = False
    console.print(drawn)
    if sandbox.get("strength") == "weak":
        console.print(WEAK, style="yellow", soft_wrap=True)
    if live := cluster.get("live"):
        columns = ["live agent", "generation", "cpu", "memory"]
        console.print(table(columns, [_live_row(agent) for agent in live], right=["generation"]))
    elif cluster:
        console.print("No agent is awake; one wakes when it is called.")


def _live_row(agent: dict[str, Any]) -> list[Any]:
    """Return an agent with how its resources are held: by what, or why they are only advisory."""
    # None until the agent has told governance, which is after its first answers can leave.
    enforcement = agent["enforcement"]
    if enforcement is None:
        return [agent["agent_id"], agent["generation"], UNKNOWN, UNKNOWN]
    held = [enforcement.get(name, {}) for name in ("cpu", "memory")]
    words = [f"{x.get('status', '')}: {', '.join(x.get('by') or x.get('why') or [])}" for x in held]
    return [agent["agent_id"], agent["generation"], *words]


def _flat(document: dict[str, Any], prefix: str = "") -> list[list[Any]]:
    """Return the leaves of a document as [dotted name, value] rows."""
    rows: list[list[Any]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append([prefix + name, ", ".join(map(str, value)) if isinstance(value, list) else value])
    return rows
