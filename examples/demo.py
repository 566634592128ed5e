"""The main job from start to end on real input, in a cluster of its own that leaves nothing behind: `make demo`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import httpx
import openai
import psutil
from rich.console import Console
from rich.json import JSON
from rich.panel import Panel
from rich.text import Text

from actors.marked import marked
from cli.output import printable, table

EXAMPLE_1: dict[str, Any] = json.loads(Path(__file__).with_name("strategic_planner.json").read_text())
OVERREACHING: dict[str, Any] = {
    "agent_id": "overreaching-001",
    "capabilities": ["market_analysis", "payment_execution"],
    "security_policy": {"allowed_tools": ["shell"], "resource_limits": {"cpu": "64", "memory": "2Gi"}},
}
QUESTION = "What is the capital of France?"
STREAMED_QUESTION = "Name three primary colours."
USAGE_SQL = """
    SELECT strftime(event_time::TIMESTAMP, '%H:%M:%S') AS time, agent_id, kind, outcome, model,
           tokens_input_uncached + tokens_cache_read + tokens_cache_write AS tokens_in,
           tokens_output, round(cpu_us / 1000, 1) AS cpu_ms, round(latency_us / 1000, 1) AS latency_ms
    FROM read_parquet('{lake}/usage/raw/v1/**/*.parquet', hive_partitioning = true)
    WHERE kind = 'final'
    ORDER BY event_time
"""
# The lake is written every second; this much later something is wrong.
USAGE_TIMEOUT_S = 20.0
GONE_TIMEOUT_S = 15.0


class FailedError(Exception):
    """A step of the demo did not show what it should have."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the demo's cluster answers."""

    url: str
    key: str
    home: Path
    cluster_id: str


class Demo:
    """The steps, in the order in which a new user would take them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        # The width of a reader's terminal, or enough for the tables where there is none.
        self.console = Console(width=None if sys.stdout.isatty() else 140, emoji=False)
        self.began = time.monotonic()
        self.number = 0

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.number += 1
        began = time.monotonic()
        self.console.print()
        self.console.rule(Text(f"{self.number}. {title}"), align="left")
        yield
        self.console.print(f"[green]done[/green] [dim]in {time.monotonic() - began:.1f} s[/dim]")

    def say(self, text: str) -> None:
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def sovereign(self, *arguments: str) -> dict[str, Any]:
        """Run the command as a user would, show its progress, and return the JSON that it printed."""
        command = [sys.executable, "-P", "-m", "cli.main", *arguments, "--home", str(self.home), "--json"]
        self.console.print(f"$ sovereign {' '.join(arguments)}", style="bold", markup=False, highlight=False)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as process:
            with self.console.status("working …") as status:
                for line in process.stderr or ():
                    status.update(Text(printable(line.strip())))
                    self.console.print(Text(f"  {printable(line.rstrip())}", style="dim"))
            printed = process.stdout.read() if process.stdout else ""
        document: dict[str, Any] = json.loads(printed.splitlines()[-1]) if printed.strip() else {}
        if process.returncode != 0:
            raise FailedError(f"`sovereign {arguments[0]}` ended with {process.returncode}: {json.dumps(document, indent=2)}")
        return document

    def start(self) -> Cluster:
        with self.step("Start a cluster on this machine, with a small language model of its own"):
            up = self.sovereign("up", "--http-port", "0", "--local-model")
            status = self.sovereign("status")
            self.say(f"It answers at {up['http_url']}; its state is in {self.home}.")
            return Cluster(up["http_url"], Path(up["api_key_file"]).read_text().strip(), self.home, status["cluster_id"])

    def register(self, api: httpx.Client) -> None:
        with self.step("Register an agent through governance"):
            self.console.print("POST /api/v1/agents", style="bold")
            self.console.print(JSON(json.dumps(EXAMPLE_1)))
            answer = api.post("/api/v1/agents", json=EXAMPLE_1)
            self.console.print(f"→ {answer.status_code}")
            self.console.print(JSON(answer.text))
            expected = {"status": "registered", "agent_id": "strategic-planner-001", "security_clearance": "validated"}
            if answer.status_code != 201 or answer.json() != expected:
                raise FailedError(f"Governance should have answered 201 {expected}.")

    def ask(self, client: openai.OpenAI) -> None:
        with self.step("Ask it something over HTTP, with OpenAI's own client"):
            self.say(f"→ {QUESTION}")
            with self.console.status("the agent wakes and thinks …"):
                answer = client.chat.completions.create(
                    model=EXAMPLE_1["agent_id"],
                    messages=[{"role": "user", "content": QUESTION}],
                    max_completion_tokens=60,
                    temperature=0,
                )
            text = answer.choices[0].message.content or ""
            self.console.print(Panel(Text(printable(text)), border_style="green"))
            if not text.strip():
                raise FailedError("The agent's answer was empty.")
            usage = answer.usage
            if usage is None or usage.completion_tokens < 1:
                raise FailedError("The answer said nothing of what it used.")
            self.say(f"{usage.prompt_tokens} tokens in, {usage.completion_tokens} out")

    def ask_streaming(self, client: openai.OpenAI) -> None:
        with self.step("Ask again, and read the answer as it comes"):
            self.say(f"→ {STREAMED_QUESTION}")
            pieces = 0
            stream = client.chat.completions.create(
                model=EXAMPLE_1["agent_id"],
                messages=[{"role": "user", "content": STREAMED_QUESTION}],
                max_completion_tokens=60,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            usage = None
            for chunk in stream:
                usage = chunk.usage or usage
                piece = "".join(choice.delta.content or "" for choice in chunk.choices)
                pieces += bool(piece)
                self.console.print(printable(piece), end="", markup=False, highlight=False, style="green", soft_wrap=True)
            self.console.print()
            if pieces < 2 or usage is None:
                raise FailedError(f"A streamed answer came in {pieces} piece(s), {'with' if usage else 'without'} its usage.")
            self.say(f"{pieces} pieces; {usage.prompt_tokens} tokens in, {usage.completion_tokens} out")

    def show_usage(self, cluster: Cluster) -> None:
        with self.step("See what that used: the Parquet in the lake, read by DuckDB"):
            sql = USAGE_SQL.format(lake=cluster.home / "lake")
            self.console.print(sql.strip("\n"), style="dim", markup=False, highlight=False)
            columns, rows = self._await_rows(sql, 2)
            self.console.print(table(columns, rows, right=["tokens_in", "tokens_output", "cpu_ms", "latency_ms"]))
            if len(rows) != 2:
                raise FailedError(f"Two calls were answered, and the lake holds {len(rows)} final usage rows.")

    def _await_rows(self, sql: str, count: int) -> tuple[list[str], list[tuple[Any, ...]]]:
        deadline = time.monotonic() + USAGE_TIMEOUT_S
        with self.console.status("waiting for the next segment …"):
            while True:
                columns: list[str] = []
                rows: list[tuple[Any, ...]] = []
                # Before the first segment there is no file, which DuckDB calls an error.
                with contextlib.suppress(duckdb.IOException):
                    found = duckdb.execute(sql)
                    columns, rows = [column[0] for column in found.description or ()], found.fetchall()
                if len(rows) >= count or time.monotonic() > deadline:
                    return columns, rows
                time.sleep(0.2)

    def show_refusal(self, api: httpx.Client) -> None:
        with self.step("Ask for more than the tenant may have"):
            self.console.print("POST /api/v1/agents", style="bold")
            self.console.print(JSON(json.dumps(OVERREACHING)))
            answer = api.post("/api/v1/agents", json=OVERREACHING)
            problem = answer.json()
            if answer.status_code != 403 or not problem.get("errors"):
                raise FailedError(
                    f"Governance should have refused with every failed check; it answered {answer.status_code} {problem}"
                )
            self.console.print(f"→ {answer.status_code} {problem['title']}", style="bold yellow")
            self.say(problem["detail"])
            rows = [[error["field"], error["message"]] for error in problem["errors"]]
            self.console.print(table(["failed check", "why"], rows))
            left = {agent["agent_id"] for agent in api.get("/api/v1/agents").json()["agents"]}
            if left != {EXAMPLE_1["agent_id"]}:
                raise FailedError(f"After a refusal nothing should be left of the second agent; registered are {sorted(left)}.")
            self.say("Nothing of it was left behind: one agent is registered.")

    def stop(self, cluster: Cluster | None) -> None:
        with self.step("Stop, and leave nothing behind"):
            self.sovereign("down")
            if cluster is None:
                return
            deadline = time.monotonic() + GONE_TIMEOUT_S
            while (left := processes_of(cluster)) and time.monotonic() < deadline:
                time.sleep(0.1)
            if left:
                raise FailedError("These processes are still there:\n" + "\n".join(left))
            self.say("No process of the cluster is left.")

    def run(self) -> None:
        cluster = None
        try:
            cluster = self.start()
            headers = {"Authorization": f"Bearer {cluster.key}"}
            with httpx.Client(base_url=cluster.url, headers=headers, timeout=60, trust_env=False) as api:
                self.register(api)
                http = openai.DefaultHttpxClient(trust_env=False)
                with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.key, http_client=http, timeout=120) as client:
                    self.ask(client)
                    self.ask_streaming(client)
                self.show_usage(cluster)
                self.show_refusal(api)
        finally:
            self.stop(cluster)
        self.console.print()
        self.console.print(
            Panel(
                Text(
                    "Go on with a cluster that stays:\n\n"
                    "  .venv/bin/sovereign up --local-model\n"
                    "  .venv/bin/sovereign agents register my-agent --capability market_analysis --model local:smollm2\n"
                    '  .venv/bin/sovereign invoke my-agent "What is the capital of France?" --stream\n'
                    "  .venv/bin/sovereign usage\n"
                    "  .venv/bin/sovereign down\n\n"
                    "docs/operators.md and docs/analysts.md have the rest."
                ),
                title=f"All of it worked, in {time.monotonic() - self.began:.0f} s",
                border_style="green",
            )
        )


def environment() -> dict[str, str]:
    """The user's environment without their own cluster's settings: the demo has a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOVEREIGN_")}
    # Ray must be told of two CPUs to place the agent beside the model on a machine that has one.
    return kept | {"SOVEREIGN_NUM_CPUS": str(max(2, psutil.cpu_count() or 1))}


def processes_of(cluster: Cluster) -> list[str]:
    """Every process that carries the cluster's marker, or was started with its home."""
    carrying = {process.pid for process in marked(cluster.cluster_id)}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if process.pid in carrying or (process.pid != os.getpid() and str(cluster.home) in command):
                found.append(f"{process.pid}: {' '.join(command)[:150]}")
    return found


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="sovereign-demo-"))
    demo = Demo(home)
    try:
        demo.run()
    except KeyboardInterrupt:
        demo.console.print("Stopped by you; nothing is left running.", style="yellow")
        shutil.rmtree(home, ignore_errors=True)
        return 130
    except Exception as fault:
        if not isinstance(fault, FailedError):
            traceback.print_exc()
        demo.console.print()
        demo.console.print(
            f"The demo failed: {printable(str(fault))}", style="bold red", markup=False, highlight=False, soft_wrap=True
        )
        demo.console.print(f"What the cluster wrote is in {home / 'logs'}.", markup=False, highlight=False, soft_wrap=True)
        return 1
    shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
