"""A crowd comes and goes: how fast gateways and an agent's replicas follow it, 1 → 4 → 1 → 0, and what its calls notice.

Each call sleeps half a second in the agent, so that a crowd is many calls at once and not CPU, of which the clients have their
share on this machine. Clients ask again as soon as they are answered. `--plot FILE` draws the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.plot import Line, Panel, svg
from benchmarks.running import cluster, emit, progress
from tests.servers.cluster import RunningCluster, eventually

AGENT = "crowded"
FEW, MANY = 4, 28
PLATEAU_S = 6.0
SAMPLE_S = 0.25
TEXT = json.dumps({"script": [{"sleep_s": 0.5}, {"say": "done"}]})


class Clients:
    """As many clients as asked for, and what each of their calls was answered: when, after how long, with what."""

    def __init__(self, running: RunningCluster) -> None:
        self._running = running
        self._wanted = 0
        self._threads: list[threading.Thread] = []
        self.calls: list[tuple[float, float, int]] = []
        self.ids: list[str] = []

    def ask_with(self, wanted: int) -> None:
        """Have `wanted` clients from now on; those that are too many end with their call."""
        self._wanted = wanted
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for number in range(wanted):
            if all(thread.name != str(number) for thread in self._threads):
                thread = threading.Thread(target=self._ask, args=(number,), name=str(number))
                self._threads.append(thread)
                thread.start()

    def join(self) -> None:
        """End with the calls under way."""
        self.ask_with(0)
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        while number < self._wanted:
            began = time.monotonic()
            answer = self._running.ask(AGENT, TEXT)
            self.calls.append((time.monotonic(), time.monotonic() - began, answer.status_code))
            if answer.status_code == 200:
                self.ids.append(answer.json()["id"].removeprefix("chatcmpl-"))
            else:
                time.sleep(float(answer.headers.get("retry-after", "1")))

    def p95_ms(self, since: float, until: float) -> float:
        """Return what 95 of 100 calls that ended in between took."""
        took = [duration for ended, duration, _ in self.calls if since <= ended < until]
        return statistics.quantiles(took, n=20)[-1] * 1000


class Sampler:
    """Looks at the cluster four times a second."""

    def __init__(self, running: RunningCluster) -> None:
        self._running = running
        self._ended = threading.Event()
        self.began = time.monotonic()
        self.seen: list[tuple[float, int, int, float]] = []
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            now = time.monotonic() - self.began
            self.seen.append((now, gateways(self._running), replicas(self._running), self._running.calls_held()))

    def end(self) -> None:
        """Stop to look."""
        self._ended.set()
        self._thread.join()


def gateways(running: RunningCluster) -> int:
    """Count the gateways."""
    return len(running.processes("ServeReplica:sovereign"))


def replicas(running: RunningCluster) -> int:
    """Count the agent's processes."""
    return len(running.processes("AgentActor"))


def took(holds: Callable[[], bool]) -> float:
    """Return the seconds until it holds."""
    began = time.monotonic()
    eventually(holds, within_s=120)
    return time.monotonic() - began


def main() -> None:
    """Run the steps and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, help="draw the run into this SVG file")
    plot = parser.parse_args().plot
    scaling = {"gateway_min_replicas": 0, "gateway_max_replicas": 4, "gateway_target_queue": 8, "gateway_down_delay_s": 3}
    with cluster(num_cpus=16, warm_pool=4, idle_s=5, **scaling) as running:
        running.register(AGENT, min_replicas=0, max_replicas=4, target_queue=8).raise_for_status()
        running.ask(AGENT).raise_for_status()
        clients, sampler = Clients(running), Sampler(running)
        marks = []

        def step(count: int, words: str) -> float:
            progress(words)
            now = time.monotonic()
            marks.append((now - sampler.began, words))
            clients.ask_with(count)
            return now

        before = step(FEW, f"{FEW} clients")
        time.sleep(PLATEAU_S)
        crowd = step(MANY, f"{MANY} clients")
        scale_up_s = took(lambda: gateways(running) >= 4 and replicas(running) >= 4)
        peak = time.monotonic()
        time.sleep(PLATEAU_S)
        lull = step(FEW, f"{FEW} clients")
        scale_down_s = took(lambda: gateways(running) == 1 and replicas(running) == 1)
        after = time.monotonic()
        time.sleep(PLATEAU_S)
        end = step(0, "nobody")
        clients.join()
        to_zero_s = took(lambda: gateways(running) + replicas(running) == 0)
        woken = time.monotonic()
        marks.append((woken - sampler.began, "one call"))
        first = running.ask(AGENT)
        from_zero_s = time.monotonic() - woken
        first.raise_for_status()
        clients.ids.append(first.json()["id"].removeprefix("chatcmpl-"))
        time.sleep(1)
        sampler.end()
        wanted = set(clients.ids)
        rows = eventually(
            lambda: [r["invocation_id"] for r in running.usage(AGENT) if r["invocation_id"] in wanted],
            lambda found: len(set(found)) == len(wanted),
        )
    if plot is not None:
        plot.write_text(draw(clients, sampler, marks))
    refused = sum(status == 429 for _, _, status in clients.calls)
    emit(
        {
            "scale_up_s": round(scale_up_s, 1),
            "scale_down_s": round(scale_down_s, 1),
            "to_zero_s": round(to_zero_s, 1),
            "from_zero_s": round(from_zero_s, 1),
            "answered": len(clients.ids),
            "refused_429": refused,
            "lost_calls": len(clients.calls) + 1 - refused - len(clients.ids),
            "rows_beyond_one_a_call": len(rows) - len(wanted),
            "p95_ms_before": round(clients.p95_ms(before + 1, crowd)),
            "p95_ms_peak": round(clients.p95_ms(peak, lull)),
            "p95_ms_after": round(clients.p95_ms(after, end)),
        }
    )


def draw(clients: Clients, sampler: Sampler, marks: list[tuple[float, str]]) -> str:
    """Return the run as SVG."""
    seconds = range(int(sampler.seen[-1][0]))
    ended = [ended - sampler.began for ended, _, status in clients.calls if status == 200]
    rate = [(second + 0.5, float(sum(second <= t < second + 1 for t in ended))) for second in seconds]
    return svg(
        "A crowd comes and goes",
        [
            Panel(
                "processes",
                [
                    Line("gateways", [(t, n) for t, n, _, _ in sampler.seen], stepped=True),
                    Line("replicas of the agent", [(t, n) for t, _, n, _ in sampler.seen], stepped=True),
                ],
            ),
            Panel("calls that gateways hold", [Line("held", [(t, held) for t, _, _, held in sampler.seen])]),
            Panel("calls answered per second", [Line("answered", rate)]),
        ],
        marks,
    )


if __name__ == "__main__":
    main()
