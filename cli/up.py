"""`sovereign up` and `sovereign down`: one cluster per home, in the foreground or in a session of its own."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.detached import POLL_S, READY_TIMEOUT_S, STOP_TIMEOUT_S, start_detached
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT
from cluster.errors import UnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from actors.run_state import ClusterState
    from cluster.settings import Settings

Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the HTTP way in; the next free one if it is busy.")]
LocalModel = Annotated[
    bool | None,
    typer.Option("--local-model/--no-local-model", help="Serve a small language model on this machine, as `local:smollm2`."),
]
Detach = Annotated[
    bool, typer.Option("--detach/--foreground", help="Return when it is ready and let it run, or stay until Ctrl-C.")
]


def up(
    detach: Detach = True, home: Home = None, http_port: Port = None, local_model: LocalModel = None, as_json: Json = False
) -> None:
    """Start a cluster that only this machine can reach."""
    settings = settings_of(home, http_port=http_port, local_model=local_model)
    if detach:
        _up_detached(settings)
    else:
        _up_here(settings)


def down(home: Home = None, as_json: Json = False) -> None:
    """Stop what `up` started, and nothing else."""
    from actors import topology

    settings = settings_of(home)
    with OUTPUT.progress("stopping") as progress:
        stopped = topology.stop(settings, timeout_s=STOP_TIMEOUT_S, on_progress=progress)
    words = "Stopped. What it recorded stays under" if stopped else "Nothing was running under"
    OUTPUT.result(
        {"stopped": stopped, "home": str(settings.home)},
        lambda console: console.print(f"{words} {settings.home}", markup=False, highlight=False, soft_wrap=True),
    )


def _up_here(settings: Settings) -> None:
    from actors import topology

    code = topology.run(settings, on_progress=OUTPUT.note, on_ready=lambda state: _announce(settings, state))
    raise typer.Exit(code)


def _up_detached(settings: Settings) -> None:
    from actors.run_state import read_state

    running = read_state(settings)
    if running is not None and running.alive:
        OUTPUT.note(f"a cluster is already {'running' if running.status == 'ready' else running.status} under {settings.home}")
        _announce(settings, _await_other(settings, running))
        return
    settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    arguments = ["up", "--foreground", "--json", "--home", str(settings.home), "--http-port", str(settings.http_port)]
    arguments.append("--local-model" if settings.local_model else "--no-local-model")

    def states() -> list[ClusterState]:
        return [state] if (state := read_state(settings)) else []

    state = start_detached(arguments, settings.log_dir / "up.log", states, what="cluster", doing="starting")
    _announce(settings, state)


def _await_other(settings: Settings, running: ClusterState) -> ClusterState:
    """Return the state of a cluster that someone else started, once it is ready."""
    from actors.run_state import read_state

    deadline = time.monotonic() + READY_TIMEOUT_S
    state: ClusterState | None = running
    with OUTPUT.progress("waiting until it is ready"):
        while state is not None and state.alive and state.status == "starting" and time.monotonic() < deadline:
            time.sleep(POLL_S)
            state = read_state(settings)
    if state is None or not state.alive or state.status != "ready":
        raise UnavailableError(
            f"The cluster under {settings.home} did not become ready.",
            hint="Try again once `sovereign status` says that nothing runs.",
        )
    return state


def _announce(settings: Settings, state: ClusterState) -> None:
    key = settings.secret_dir / "api-key"
    data: dict[str, Any] = {
        "status": state.status,
        "http_url": state.http_url,
        "metrics_url": state.metrics_url,
        "home": str(settings.home),
        "api_key_file": str(key),
        "pid": state.pid,
        "local_model": settings.local_model,
    }
    flag = "" if settings.home == Path.cwd() / ".sovereign" else f" --home {settings.home}"

    def render(console: Console) -> None:
        lines = [
            f"Sovereign is {state.status} at {state.http_url}",
            f"  register  sovereign agents register my-agent --capability market_analysis{flag}",
            f'  call      sovereign invoke my-agent "What can you do?"{flag}',
            f'  or HTTP   curl {state.http_url}/v1/chat/completions -H "Authorization: Bearer $(cat {key})" \\',
            '              -H "Content-Type: application/json" \\',
            """              -d '{"model": "my-agent", "messages": [{"role": "user", "content": "Hello"}]}'""",
            f"  usage     sovereign usage{flag}",
            f"  metrics   curl {state.metrics_url}",
            f"  stop      sovereign down{flag}",
        ]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)

    OUTPUT.result(data, render)
