"""`sovereign join` and `leave`, and `sovereign nodes`: the machines of a cluster, for its operator."""

from __future__ import annotations

import asyncio
import getpass
import re
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.detached import start_detached
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table
from cli.up import Detach

if TYPE_CHECKING:
    from rich.console import Console

    from actors.run_state import NodeState
    from cluster.settings import Settings

app = typer.Typer(help="List, drain and resume the nodes of the cluster.", no_args_is_help=True, rich_markup_mode=None)

# Draining waits for calls under way.
DRAIN_TIMEOUT_S = 120.0
# Nodes on one machine that need no name to be given.
MAX_NODES_HERE = 16

Name = Annotated[str | None, typer.Option("--name", help="The node's name [default: this machine's].", show_default=False)]
NodeName = Annotated[str, typer.Argument(metavar="NODE", help="The node's name.", show_default=False)]
Address = Annotated[
    str,
    typer.Argument(metavar="[ADDRESS]", help="Where the cluster answers nodes [default: as its home says].", show_default=False),
]
Label = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="A label that agents may ask for (may be given more than once)."),
]


def join(
    address: Address = "",
    name: Name = None,
    label: Label = None,
    num_cpus: Annotated[int | None, typer.Option(min=0, help="CPUs that agents may share on this node; 0 means all.")] = None,
    detach: Detach = True,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Join the running cluster of a home as one more node, which agents may be placed on."""
    settings = settings_of(home, num_cpus=num_cpus, node_labels=",".join(label) if label else None)
    names = [_named(name)] if name else _names_of_this_machine()
    if detach:
        _join_detached(settings, name, address)
        return
    from actors import joined_node

    code = joined_node.run(settings, names, address, on_progress=OUTPUT.note, on_ready=_announce)
    raise typer.Exit(code)


def leave(name: Name = None, home: Home = None, as_json: Json = False) -> None:
    """Drain a node that joined from this machine and end what `join` started, and nothing else."""
    from actors import joined_node

    settings = settings_of(home).of_node(_named(name) if name else _names_of_this_machine()[0])
    with OUTPUT.progress("leaving") as progress:
        stopped = joined_node.leave(settings, on_progress=progress)
    words = f"{settings.node} has left." if stopped else f"No node {settings.node} was running."
    data = {"node": settings.node, "stopped": stopped}
    OUTPUT.result(data, lambda console: console.print(words, markup=False, highlight=False))


@app.command("list")
def list_nodes(home: Home = None, as_json: Json = False) -> None:
    """List the nodes, with their state and what they have."""
    page = _ask(settings_of(home), "nodes")
    OUTPUT.result(page, lambda console: _render(console, page["nodes"]))


@app.command()
def drain(node: NodeName, home: Home = None, as_json: Json = False) -> None:
    """Place nothing new on a node, end the agents that it has (they wake elsewhere when called), and ship what they wrote."""
    done = _ask(settings_of(home), "drain_node", node, f"operator:{getpass.getuser()}")
    shipped = "what they wrote is in the lake" if done["shipped"] else "what they wrote is not all in the lake yet"
    words = f"{node} is drained: {done['ended']} agents were ended, and {shipped}."
    OUTPUT.result(done, lambda console: console.print(words, markup=False, highlight=False))


@app.command()
def resume(node: NodeName, home: Home = None, as_json: Json = False) -> None:
    """Let a drained node take agents again."""
    done = _ask(settings_of(home), "resume_node", node, f"operator:{getpass.getuser()}")
    OUTPUT.result(done, lambda console: console.print(f"{node} takes agents again.", markup=False, highlight=False))


def _ask(settings: Settings, method: str, *arguments: str) -> Any:
    from actors.directory import Governance
    from actors.ray_connection import connect_to

    connect_to(settings)
    return asyncio.run(Governance().call(method, *arguments, timeout_s=DRAIN_TIMEOUT_S))


def _named(name: str) -> str:
    from cluster.identity.ids import Identifier

    return str(Identifier.parse(name, "--name"))


def _names_of_this_machine() -> list[str]:
    """Return the names that a node here may have: the machine's, which is the same after each restart, then numbered ones."""
    name = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().partition(".")[0].lower())[:50].strip("-") or "node"
    return [name, *(f"{name}-{number}" for number in range(2, MAX_NODES_HERE + 1))]


def _join_detached(settings: Settings, name: str | None, address: str) -> None:
    from actors import joined_node
    from actors.run_state import node_states

    joined_node.cluster_to_join(settings, address)  # before anything is written
    arguments = ["join", "--foreground", "--json", "--home", str(settings.home), "--num-cpus", str(settings.num_cpus)]
    arguments += ["--name", name] if name else []
    arguments += [part for label in settings.node_labels.split(",") if label for part in ("--label", label)]
    arguments += [address] if address else []
    log = settings.log_dir / "join.log"
    _announce(start_detached(arguments, log, lambda: node_states(settings), what="node", doing="joining"))


def _announce(state: NodeState) -> None:
    data: dict[str, Any] = {
        "status": state.status,
        "node": state.name,
        "cluster": state.ray_address,
        "metrics_url": state.metrics_url,
        "pid": state.pid,
    }
    words = f"Node {state.name} is {state.status}. It leaves with: sovereign leave --name {state.name}"
    OUTPUT.result(data, lambda console: console.print(words, markup=False, highlight=False))


def _render(console: Console, nodes: list[dict[str, Any]]) -> None:
    columns = ["node", "state", "agents", "cpu", "memory", "address", "labels"]
    rows = [
        [
            node["name"] + (" (head)" if node["head"] else ""),
            node["state"] + (f"; its journals wait: {node['unshipped']}" if node["unshipped"] else ""),
            node["agents"],
            node["cpu"],
            node["memory"],
            node["address"],
            ", ".join(f"{k}={v}" for k, v in sorted(node["labels"].items())),
        ]
        for node in nodes
    ]
    console.print(table(columns, rows, right=["agents", "cpu", "memory"]))
