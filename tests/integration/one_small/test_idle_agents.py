"""Agents that nobody calls give their process back, and agents that need room get it from those."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.servers.cluster import RunningCluster, eventually


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": list(steps)})


def live(cluster: RunningCluster) -> set[str]:
    return {a["agent_id"] for a in cluster.http.get("/api/v1/status").json()["live"]}


def test_an_idle_agent_gives_its_process_back_and_remembers(small: RunningCluster) -> None:
    """Its next call wakes it as a new generation, in the middle of its conversation."""
    small.register("rememberer")

    def say(text: str) -> int:
        answer = small.ask("rememberer", script({"say": text}), metadata={"conversation_id": "c"})
        return int(answer.json()["usage"]["prompt_tokens"])

    first = say("one")
    # A call that comes while its process is asked to end is still answered by it.
    eventually(lambda: small.http.get("/api/v1/agents/rememberer").json()["state"], lambda state: state == "passive")
    assert say("two") > first
    rows = eventually(lambda: small.usage("rememberer"), lambda rows: len(rows) == 2)
    assert {r["writer_epoch"] for r in rows} == {1, 2}


def test_a_long_call_is_not_idleness(small: RunningCluster) -> None:
    """A call that runs for longer than the idle time is answered by the process that began it."""
    small.register("worker")
    assert small.ask("worker", script({"sleep_s": 2.5}, {"say": "done"})).json()["choices"][0]["message"]["content"] == "done"
    assert {r["writer_epoch"] for r in eventually(lambda: small.usage("worker"))} == {1}


def test_agents_that_do_nothing_make_room_for_one_that_is_called(small: RunningCluster) -> None:
    """Five agents on a node for two are all answered, one after the other, without waiting for anybody's idle time."""
    for n in range(5):
        small.register(f"crowd-{n}", cpu="1000m")
    assert [small.ask(f"crowd-{n}").status_code for n in range(5)] == [200] * 5


def test_without_room_the_answer_comes_at_once(small: RunningCluster) -> None:
    """While others work, a third agent is refused with 503 and Retry-After; afterwards it is answered. None of theirs is lost."""
    for name in ("busy-0", "busy-1", "third"):
        small.register(name, cpu="1000m")
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(small.ask, f"busy-{n}", script({"sleep_s": 8}, {"say": "done"})) for n in range(2)]
        eventually(lambda: {"busy-0", "busy-1"} <= live(small))
        refused = small.ask("third")
        assert not any(s.done() for s in slow), "refused only when the others were done"
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "no room" in refused.json()["error"]["message"]
        assert [s.result().status_code for s in slow] == [200, 200]
    assert small.ask("third").status_code == 200
