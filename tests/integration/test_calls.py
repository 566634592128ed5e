"""Calls over the whole road: HTTP, gateway, channel, agent, journal, shipper, lake."""

from __future__ import annotations

import asyncio
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.servers.cluster import RunningCluster, eventually
from tests.sizes import soak


def script(*steps: dict[str, Any]) -> str:
    return json.dumps({"script": list(steps)})


def send(cluster: RunningCluster, agent_id: str, text: str, header: str) -> socket.socket:
    """Send a streamed call straight to the replica, and return the connection, on which little waits to be read."""
    body = json.dumps({"model": agent_id, "stream": True, "messages": [{"role": "user", "content": text}]})
    kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
    head = f"Host: x\r\nAuthorization: Bearer {cluster.key}\r\n{kind}\r\n{header}\r\n\r\n"
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # which keeps the replica's buffer small too
    client.settimeout(30)
    client.connect(cluster.replica())
    client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}{body}".encode())
    return client


def finals(cluster: RunningCluster, agent_id: str, count: int) -> list[dict[str, Any]]:
    return eventually(lambda: cluster.usage(agent_id), lambda rows: len(rows) >= count)


@pytest.fixture(scope="module")
def echo(cluster: RunningCluster) -> str:
    assert cluster.register("echo", model="scripted:echo").status_code == 201
    return "echo"


@pytest.fixture(scope="module")
def steps(cluster: RunningCluster) -> str:
    assert cluster.register("steps").status_code == 201
    return "steps"


def test_a_whole_answer_carries_its_usage_and_leaves_one_row(cluster: RunningCluster) -> None:
    """The OpenAI client gets an answer with token counts, and the lake has exactly one final row with the same counts."""
    cluster.register("once", model="scripted:echo")
    answer = cluster.openai().chat.completions.create(model="once", messages=[{"role": "user", "content": "good day"}])
    assert answer.choices[0].message.content == "echo: good day"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    (row,) = finals(cluster, "once", 1)
    assert (row["kind"], row["outcome"], row["billable"]) == ("final", "ok", True)
    assert row["tokens_input_uncached"] == answer.usage.prompt_tokens > 0
    assert row["tokens_output"] == answer.usage.completion_tokens > 0
    assert answer.id == f"chatcmpl-{row['invocation_id']}"
    assert row["cpu_us"] > 0
    assert row["latency_us"] > 0


def test_a_stream_comes_in_pieces_and_ends_with_its_usage(cluster: RunningCluster, steps: str) -> None:
    """Streamed text joins to the whole answer; the last chunk has the usage and no choice."""
    stream = cluster.openai().chat.completions.create(
        model=steps,
        messages=[{"role": "user", "content": script({"stream": ["one ", "two ", "three"]})}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two three"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_a_conversation_is_remembered_and_its_turns_run_one_by_one(cluster: RunningCluster) -> None:
    """Two turns sent at once to one conversation run in order; another conversation does not wait for them."""
    cluster.register("memory")
    assert cluster.ask("memory").status_code == 200

    async def talk() -> list[str]:
        client = cluster.async_openai()

        async def turn(conversation: str, text: str) -> str:
            answer = await client.chat.completions.create(
                model="memory", messages=[{"role": "user", "content": text}], metadata={"conversation_id": conversation}
            )
            return str(answer.choices[0].message.content)

        done: list[str] = []

        async def note(name: str, conversation: str, text: str) -> None:
            await turn(conversation, text)
            done.append(name)

        before = cluster.journal_bytes("memory")
        slow = asyncio.ensure_future(note("slow", "a", script({"sleep_s": 1.5}, {"say": "slow"})))
        await asyncio.to_thread(eventually, lambda: cluster.journal_bytes("memory") > before)  # it is under way
        await asyncio.gather(slow, note("queued", "a", script({"say": "queued"})), note("other", "b", script({"say": "other"})))
        await client.close()
        return done

    assert asyncio.run(talk()) == ["other", "slow", "queued"]


def test_a_client_that_goes_away_stops_the_work_and_is_billed_once(cluster: RunningCluster) -> None:
    """Calls left as soon as they are under way are cancelled at the agent, before their end, and have one final row each."""
    cluster.register("left")
    assert cluster.ask("left", script({"say": "awake"})).status_code == 200
    calls = soak(30, 300)
    body = {"model": "left", "messages": [{"role": "user", "content": script({"sleep_s": 3}, {"say": "never"})}]}

    written = cluster.journal_bytes("left")

    async def journal_grows() -> None:
        nonlocal written
        seen = written
        written = await asyncio.to_thread(eventually, lambda: cluster.journal_bytes("left"), lambda size: size > seen)

    async def leave_all() -> None:
        async with httpx.AsyncClient(base_url=cluster.state.http_url, headers=cluster.headers, timeout=60) as http:
            for _ in range(calls):
                call = asyncio.ensure_future(http.post("/v1/chat/completions", json=body))
                await journal_grows()  # it is admitted
                call.cancel()
                await asyncio.wait((call,))
                await journal_grows()  # it has ended

    asyncio.run(leave_all())
    rows = finals(cluster, "left", calls + 1)
    assert sorted(r["outcome"] for r in rows) == ["cancelled"] * calls + ["ok"]


def test_leaving_a_stream_stops_the_work(cluster: RunningCluster) -> None:
    """Closing a stream midway cancels the call at the agent."""
    cluster.register("leaver")
    text = script({"stream": ["first "]}, {"call_tool": {"name": "none", "args": {}}}, {"sleep_s": 100}, {"say": "never"})
    with cluster.openai().chat.completions.create(
        model="leaver", messages=[{"role": "user", "content": text}], stream=True
    ) as stream:
        next(iter(stream))
    (row,) = finals(cluster, "leaver", 1)
    assert row["outcome"] in ("cancelled", "ok")
    assert row["latency_us"] < 50_000_000


def test_leaving_a_stream_before_its_first_piece_stops_the_work(cluster: RunningCluster) -> None:
    """The gateway itself watches the client while it waits for the agent: Serve is told not to, straight at the replica."""
    cluster.register("early")
    assert cluster.ask("early", script({"say": "awake"})).status_code == 200
    before = cluster.journal_bytes("early")
    with send(cluster, "early", script({"sleep_s": 100}, {"say": "never"}), "X-Request-Disconnect-Disabled: ?1"):
        eventually(lambda: cluster.journal_bytes("early") > before)  # it is under way
    rows = finals(cluster, "early", 2)
    assert sorted(r["outcome"] for r in rows) == ["cancelled", "ok"]
    eventually(cluster.calls_held, lambda held: held == 0)


def test_a_stream_that_nobody_reads_gives_its_place_back_at_its_deadline(cluster: RunningCluster) -> None:
    """A client that opens a stream and does not read holds its call until its deadline and no longer (control: EventStream)."""
    cluster.register("unread")
    assert cluster.ask("unread", script({"say": "awake"})).status_code == 200
    # More than all buffers on its way hold together.
    with send(cluster, "unread", script({"stream": ["x" * 2000], "times": 10_000}), "X-Deadline-S: 3") as client:
        eventually(cluster.calls_held, lambda held: held == 1)
        eventually(cluster.calls_held, lambda held: held == 0)
        rows = finals(cluster, "unread", 2)
        assert sorted(r["outcome"] for r in rows) == ["deadline", "ok"]
        received = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert not received.endswith(b"\r\n0\r\n\r\n"), "what was cut off must not look whole"


def test_an_agent_over_its_iterations_is_stopped_by_name(cluster: RunningCluster) -> None:
    """An agent that loops over tools ends after ten model calls with an error that says so."""
    cluster.register("looper", capabilities=["market_analysis"])
    answer = cluster.ask("looper", script({"loop_tools": {"name": "no_such_tool", "args": {}}}))
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "iteration_limit"
    (row,) = finals(cluster, "looper", 1)
    assert row["outcome"] == "limit"


def test_a_tool_outside_the_grant_is_refused_before_it_runs_and_audited(cluster: RunningCluster) -> None:
    """The model asks for a tool that was not granted: it gets an error, the call goes on, and an audit row names the tool."""
    cluster.register("injected", capabilities=["market_analysis"])
    answer = cluster.ask("injected", script({"call_tool": {"name": "Web_Search", "args": {}}}, {"say": "{tool}"}))
    assert answer.status_code == 200
    assert "not granted" in answer.json()["choices"][0]["message"]["content"]
    rows = eventually(lambda: cluster.audit(action="tool:call:refuse", object_id="injected"))
    assert "Web_Search" in rows[0]["detail_json"]


def test_a_granted_tool_runs_in_the_sandbox_and_is_metered(cluster: RunningCluster) -> None:
    """A granted tool's result reaches the model, and the usage row counts the call and its CPU."""
    cluster.register(
        "analyst",
        capabilities=["market_analysis"],
        security_policy={"allowed_tools": ["data_analysis"], "resource_limits": {"cpu": "100m", "memory": "512Mi"}},
    )
    call = {"name": "data_analysis", "args": {"rows": [{"x": 1}, {"x": 3}], "sql": "select avg(x) as mean from data"}}
    answer = cluster.ask("analyst", script({"call_tool": call}, {"say": "{tool}"}))
    assert answer.status_code == 200, answer.text
    assert "2" in answer.json()["choices"][0]["message"]["content"]
    (row,) = finals(cluster, "analyst", 1)
    assert row["tool_calls"] == 1


def test_an_agent_asks_another_within_its_rights(cluster: RunningCluster, echo: str) -> None:
    """The answer comes back through the asking model, each has its own bill under one call, and more rights are refused."""
    cluster.register("lead", capabilities=["delegation"])
    cluster.register("assistant-1", capabilities=["conversation"], model="scripted:echo")
    ask = {"name": "ask_agent", "args": {"agent_id": "assistant-1", "question": "how much?"}}
    answer = cluster.ask("lead", script({"call_tool": ask}, {"say": "{tool}"}))
    assert answer.json()["choices"][0]["message"]["content"] == "echo: how much?"
    (parent,), (child,) = finals(cluster, "lead", 1), finals(cluster, "assistant-1", 1)
    assert child["parent_invocation_id"] == parent["invocation_id"]
    assert (parent["tool_calls"], child["outcome"]) == (1, "ok")

    beyond = ask | {"args": {"agent_id": echo, "question": "and you?"}}
    said = cluster.ask("lead", script({"call_tool": beyond}, {"say": "{tool}"})).json()["choices"][0]["message"]["content"]
    assert "may not hand work to agent echo" in said
    assert "tools_within_parent" in said
    (denied,) = eventually(lambda: cluster.audit(action="delegation:agent:decide", object_id=echo))
    assert (denied["actor"], denied["outcome"]) == ("agent:lead", "denied")


def test_memory_beyond_the_declaration_is_an_error_in_its_own_answer(cluster: RunningCluster, echo: str) -> None:
    """An agent that declares 256Mi and takes 1Gi gets an error; itself and its neighbour answer the next call."""
    cluster.register("hungry")
    before = cluster.ask("hungry", script({"say": "well"}))
    answer = cluster.ask("hungry", script({"allocate_mib": 1024}, {"say": "never"}))
    assert answer.status_code == 507
    assert answer.json()["error"]["code"] == "out_of_memory"
    assert cluster.ask(echo, "still here").status_code == 200
    after = cluster.ask("hungry", script({"say": "well again"}))
    assert (before.status_code, after.status_code) == (200, 200)
    outcomes = [r["outcome"] for r in finals(cluster, "hungry", 3)]
    assert sorted(outcomes) == ["limit", "ok", "ok"]


def test_a_full_gateway_refuses_at_once(cluster: RunningCluster, echo: str) -> None:
    """Beyond its share a tenant gets 429 with Retry-After at once, and nothing is started; those before it wait for their turn.

    Of 32 places and 32 that may wait, one tenant has three quarters.
    """
    cluster.register("slow")
    cluster.ask("slow")

    async def crowd() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=cluster.state.http_url, headers=cluster.headers, timeout=60, limits=limits) as http:
            body = {"model": "slow", "messages": [{"role": "user", "content": script({"sleep_s": 1.5}, {"say": "done"})}]}
            return list(await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(100))))

    answers = asyncio.run(crowd())
    refused = [a for a in answers if a.status_code == 429]
    assert len(refused) == 100 - 24 - 24
    assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
    assert {a.status_code for a in answers} == {200, 429}
    assert cluster.ask(echo).status_code == 200


def test_a_call_past_its_deadline_is_stopped(cluster: RunningCluster) -> None:
    """A client's own deadline travels to the agent, which ends the work and says so."""
    cluster.register("late")
    cluster.ask("late")
    body = {"model": "late", "messages": [{"role": "user", "content": script({"sleep_s": 100}, {"say": "never"})}]}
    answer = cluster.http.post("/v1/chat/completions", json=body, headers={"x-deadline-s": "0.5"})
    assert answer.status_code == 504
    rows = finals(cluster, "late", 2)
    assert sorted(r["outcome"] for r in rows) == ["deadline", "ok"]


def test_a_wake_counts_against_the_deadline(cluster: RunningCluster) -> None:
    """The time that it takes to start the agent is part of the caller's deadline, and the caller hears of it in time."""
    cluster.register("sleepyhead", model="scripted:ok")
    body = {"model": "sleepyhead", "messages": [{"role": "user", "content": "hello"}]}
    answer = cluster.http.post("/v1/chat/completions", json=body, headers={"x-deadline-s": "0.005"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert cluster.ask("sleepyhead").status_code == 200


def test_many_callers_of_a_sleeping_agent_wake_it_once(cluster: RunningCluster) -> None:
    """Twenty first calls at the same time start one process, and all are answered."""
    cluster.register("sleeper", model="scripted:ok")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: cluster.ask("sleeper"), range(20)))
    assert {a.status_code for a in answers} == {200}
    rows = finals(cluster, "sleeper", 20)
    assert len(rows) == 20
    assert {r["writer_id"] for r in rows} == {"agent.default.sleeper"}
    assert {r["writer_epoch"] for r in rows} == {1}


def test_a_removed_agent_is_gone_and_its_name_starts_a_new_generation(cluster: RunningCluster) -> None:
    """After removal a call is a 404; registered again under the same name it answers as a later generation."""
    cluster.register("phoenix", model="scripted:ok")
    assert cluster.ask("phoenix").status_code == 200
    assert cluster.http.delete("/api/v1/agents/phoenix").status_code == 200
    with pytest.raises(openai.NotFoundError):
        cluster.openai().chat.completions.create(model="phoenix", messages=[{"role": "user", "content": "x"}])
    assert cluster.register("phoenix", model="scripted:echo").status_code == 201
    assert "echo" in cluster.ask("phoenix").json()["choices"][0]["message"]["content"]
    rows = finals(cluster, "phoenix", 2)
    assert len({(r["writer_id"], r["writer_epoch"]) for r in rows}) == 2


def test_a_name_that_is_used_again_remembers_nothing(cluster: RunningCluster) -> None:
    """Removed with its conversations: the next agent of the name reads none of them."""

    def say(text: str) -> int:
        answer = cluster.ask("heir", script({"say": text}), metadata={"conversation_id": "c1"})
        return int(answer.json()["usage"]["prompt_tokens"])

    cluster.register("heir")
    alone, remembered = say("mine"), say("mine")
    assert remembered > alone
    cluster.http.delete("/api/v1/agents/heir").raise_for_status()
    cluster.register("heir")
    assert say("mine") == alone
    assert len(list((cluster.settings.checkpoint_dir / "default").glob("heir-*.sqlite"))) == 1


def test_agents_are_listed_as_models(cluster: RunningCluster, echo: str) -> None:
    """GET /v1/models lists the caller's agents in OpenAI's shape."""
    assert echo in [m.id for m in cluster.openai().models.list()]
