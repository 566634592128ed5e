"""One process that is agent `b` and then agent `a`, and says what of `b` is left.

Run as `python -m tests.servers.rebound_agent FOLDER`, because it puts limits on itself.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from actors.agent import AgentActor
from actors.channel import ChannelClient
from actors.start_order import StartOrder
from actors.wire import CallAnswer, CallOrder
from cluster.agents.record import AgentRecord
from cluster.agents.spec import AgentSpec, Resources
from cluster.clock import SystemClock
from cluster.errors import SovereignError
from cluster.identity.grants import SessionGrant, derive_agent_key, issue_ticket
from cluster.identity.ids import AgentId, ProjectId, TenantId
from cluster.journal.backlog import Backlog
from cluster.settings import Settings

MASTER = b"m" * 32


def order(home: Path, agent: str, generation: int) -> bytes:
    """Return what governance would tell the process."""
    size = Resources(100, 512 << 20)
    spec = AgentSpec(AgentId(agent), "t", ("c",), "scripted:steps", "", (), size, (), "low", (), 3, 1)
    record = AgentRecord(TenantId("default"), ProjectId("p"), spec, (), f"decision-{agent}", "r", "d", "key:t", 0)
    return StartOrder(Settings.load(home=home), "default", record, generation).to_bytes()


def key(agent: str, generation: int) -> bytes:
    """Return the key of a generation."""
    return derive_agent_key(MASTER, "default", agent, generation)


def grant(agent: str, generation: int) -> SessionGrant:
    """Return a caller's session with a generation."""
    return issue_ticket(
        key(agent, generation),
        caller="key:t",
        tenant=TenantId("default"),
        agent=AgentId(agent),
        generation=generation,
        ttl_s=60,
    )


async def turn(client: ChannelClient, agent: str, generation: int, text: str) -> str:
    """Return the answer of a conversation's turn, with how much of it the model saw; or the code of what refused it."""
    said = json.dumps({"script": [{"say": text}]})
    call = CallOrder(f"{agent}-{text}", [{"role": "user", "content": said}], thread_id="c").to_bytes()
    try:
        answer = CallAnswer.from_bytes(await client.call(call, grant=grant(agent, generation), deadline_s=20))
    except SovereignError as e:
        return e.code
    return f"{answer.text} after {answer.usage.tokens_input_uncached}"


def open_files(home: Path) -> list[str]:
    """Return what this process holds open of journals and conversations, as paths below `home`."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            path = fd.readlink()
        except OSError:
            continue
        if path.is_relative_to(home) and "log" not in path.name:
            found.append(str(path.relative_to(home)))
    return sorted(found)


async def live_two_lives(home: Path) -> dict[str, Any]:
    """Be one agent after the other, and return what was seen."""
    seen: dict[str, Any] = {}
    journals = Settings.load(home=home).journal_dir
    journals.mkdir(parents=True)
    Backlog(0, SystemClock().monotonic_us()).write(journals)  # as a shipper says that there is room
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    actor = AgentActor(order(home, "b", 1))
    told = json.loads(await actor.start(key("b", 1)))
    first = await ChannelClient.connect(told["host"], told["port"])
    seen["vacated too early"] = await actor.vacate(5)  # its first call is on its way
    seen["rebound while held"] = await refused(actor.rebind(order(home, "a", 1), key("a", 1)))
    seen["b"] = await turn(first, "b", 1, "one")
    before = weakref.ref(actor._agent)
    watch = asyncio.ensure_future(actor.watch(900.0, 60.0))
    await asyncio.sleep(0)
    threads = {t.name for t in threading.enumerate()}
    seen["vacated"] = await actor.vacate(5)
    seen["watch"] = json.loads(await watch)["news"]
    seen["status"] = json.loads(await actor.status())
    seen["held"] = open_files(home)
    seen["limit lifted"] = resource.getrlimit(resource.RLIMIT_DATA) == limit
    seen["threads left"] = sorted(
        t.name for t in threading.enumerate() if t.name in threads and t.name.startswith(("journal", "memory"))
    )
    gc.collect()
    seen["collected"] = before() is None
    told = json.loads(await actor.rebind(order(home, "a", 1), key("a", 1)))
    seen["connection closed"] = first.closed
    second = await ChannelClient.connect(told["host"], told["port"])
    seen["b's grant"] = await turn(second, "b", 1, "two")
    seen["a"] = await turn(second, "a", 1, "one")
    seen["status of a"] = {k: json.loads(await actor.status())[k] for k in ("agent_id", "generation", "running")}
    seen["vacated again"] = await actor.vacate(5)
    told = json.loads(await actor.rebind(order(home, "b", 2), key("b", 2)))
    third = await ChannelClient.connect(told["host"], told["port"])
    seen["b remembers"] = await turn(third, "b", 2, "two")
    await asyncio.gather(second.close(), third.close())
    await actor.vacate(5)
    return seen


async def refused(work: Any) -> str:
    """Return the code of the error that `work` ends with."""
    try:
        await work
    except SovereignError as e:
        return e.code
    return ""


if __name__ == "__main__":
    # A refused rebinding would end the process, as it should.
    AgentActor._exit = staticmethod(lambda: None)  # type: ignore[method-assign]
    print(json.dumps(asyncio.run(live_two_lives(Path(sys.argv[1])))))
