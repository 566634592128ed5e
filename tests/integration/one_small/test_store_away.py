"""A whole cluster whose lake goes away: it says so, refuses what is new at its limit, and loses nothing."""

from __future__ import annotations

from tests.servers.cluster import RunningCluster, eventually


def journal(cluster: RunningCluster) -> dict[str, object]:
    said: dict[str, object] = cluster.http.get("/api/v1/status").json()["journal"]
    return said


def test_threat_64_a_lake_that_is_away_closes_the_way_in_until_it_is_back(small: RunningCluster) -> None:
    """Calls go on to the limit, then calls and registrations get 503; afterwards each answered call has one row."""
    assert small.register("planner", model="scripted:echo").status_code == 201
    answered = [small.ask("planner").json()["id"]]
    lake, away = small.settings.home / "lake", small.settings.home / "lake.away"
    eventually(lambda: small.usage("planner"))
    lake.rename(away)
    lake.write_text("no folder, so nothing can be stored below it")
    while (answer := small.ask("planner")).status_code == 200:
        answered.append(answer.json()["id"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "journal_full")
    assert int(answer.headers["retry-after"]) > 0
    late = small.register("late", model="scripted:echo")
    assert (late.status_code, late.json()["code"]) == (503, "journal_full")
    said = eventually(lambda: journal(small), lambda said: said["admits"] is False)
    assert said["nothing_shipped_since"]
    lake.unlink()
    away.rename(lake)
    eventually(lambda: small.ask("planner").status_code, lambda status: status == 200)
    assert small.register("late", model="scripted:echo").status_code == 201
    rows = eventually(lambda: small.usage("planner"), lambda rows: len(rows) > len(answered))
    ids = sorted(r["invocation_id"] for r in rows)
    assert len(ids) == len(set(ids)) == len(answered) + 1
    assert {i.removeprefix("chatcmpl-") for i in answered} <= set(ids)
