"""A caller's view of the agents: where each answers, kept until it is found wrong, over connections that stay open.

Of an agent with several replicas a conversation stays with one of them as long as that is there, and other calls go where
the fewest are under way. Which there are is asked again beside the calls, never by one of them.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from ray.exceptions import RayError

from actors.channel import CallStream, ChannelClient
from actors.channel.unheard import GivenUp, note_unsent
from actors.ray_actors import GOVERNANCE, Handle, find
from actors.resolved import Resolved
from cluster.errors import (
    AgentLostError,
    DeadlineExceededError,
    GrantRefusedError,
    SovereignError,
    StaleGenerationError,
    UnavailableError,
    from_problem,
)
from cluster.identity.grants import SessionGrant
from cluster.identity.principal import Principal
from cluster.telemetry.metrics import Metrics, Stage
from cluster.telemetry.tracing import span, traceparent

# How often a call that was refused before it began is taken to the directory again.
ATTEMPTS = 4
# A ticket is renewed this long before it ends, so that no call is refused for its age.
RENEW_BEFORE_US = 30_000_000
# How long what is known of an agent that may have several replicas is believed.
REPLICAS_KNOWN_S = 1.0
# Callers' sessions kept at once; the oldest goes first.
MAX_LINKS = 10_000


# tenant, agent, subject, scopes, depth: a ticket names its caller, and was given for what they might do then.
LinkKey = tuple[str, str, str, frozenset[str], int]


@dataclass(slots=True, eq=False)
class Link:
    """An open road to one generation of an agent, for callers with the same rights."""

    client: ChannelClient
    grant: SessionGrant
    generation: int
    expires_us: int


@dataclass(slots=True)
class Replicas:
    """The open roads to an agent."""

    links: list[Link]
    # When to ask again, by the monotonic clock.
    stale_at: float

    def usable(self) -> list[Link]:
        """Return those that are open and whose ticket holds."""
        soonest_us = time.time() * 1e6 + RENEW_BEFORE_US
        return [link for link in self.links if not link.client.closed and link.expires_us > soonest_us]

    def gone(self) -> int:
        """Return a generation whose connection is closed; 0 when there is none."""
        return next((link.generation for link in self.links if link.client.closed), 0)


def choose(links: list[Link], conversation: str | None) -> Link:
    """Return the replica for a call: by rendezvous hashing for one of a conversation, else where the fewest are under way."""
    if len(links) == 1:
        return links[0]
    if conversation is None:
        return min(links, key=lambda link: link.client.pending)
    name = conversation.encode("utf-8", "surrogatepass")
    return max(links, key=lambda link: blake2b(name, digest_size=8, salt=link.generation.to_bytes(8)).digest())


class Governance:
    """Calls the governance actor and survives its restarts."""

    def __init__(self) -> None:
        self._handle: Handle | None = None

    async def call(self, method: str, *arguments: object, timeout_s: float = 30.0) -> Any:
        """Return the method's answer; raises its SovereignError, or UnavailableError when governance stays away."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if self._handle is None:
                    self._handle = await asyncio.to_thread(find, GOVERNANCE)
                under = {"trace": trace} if (trace := traceparent()) else {}
                remote = getattr(self._handle, method).remote(*arguments, **under)
                document = json.loads(await asyncio.wait_for(remote, max(0.1, deadline - time.monotonic())))
                break
            except (RayError, ValueError, TimeoutError) as e:
                self._handle = None
                if time.monotonic() > deadline - 0.2:
                    raise UnavailableError(
                        "Governance does not answer.", hint="It restarts by itself; retry in a moment.", retry_after_s=1
                    ) from e
                await asyncio.sleep(0.1)
        if "problem" in document:
            raise from_problem(document["problem"])
        return document["ok"]


class AgentStream:
    """A streamed answer that has begun: iterate for its text, then read `result`; `aclose` stops the agent's work.

    What came while nobody read comes as one piece.
    """

    def __init__(self, first: bytes | None, stream: CallStream) -> None:
        self._first = first
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._first is not None:
            yield b"".join([self._first, *self._stream.take_waiting()])
            async for chunk in self._stream:
                yield b"".join([chunk, *self._stream.take_waiting()])

    @property
    def ended(self) -> bool:
        """Whether all of its text was read and its result is there."""
        return self._stream.ended

    @property
    def result(self) -> bytes:
        """The body of the answer's last frame; raises RuntimeError before the end."""
        return self._stream.result

    @property
    def deadline_at(self) -> float:
        """When the call's time is up, by the loop's clock."""
        return self._stream.deadline_at

    @property
    def given_up(self) -> GivenUp | None:
        """Where the end of a call that was given up is heard of."""
        return self._stream.given_up

    async def aclose(self) -> None:
        """Give the call up."""
        await self._stream.aclose()

    async def stopped(self) -> None:
        """Wait until the agent has stopped a call that was given up, and its last fact is written."""
        await self._stream.stopped()


class Directory:
    """Resolves agents once and keeps the road open; finds again what moved.

    Only a call that its agent refused before it began is sent again: one that was lost midway may have run.
    """

    def __init__(self, governance: Governance, metrics: Metrics | None = None) -> None:
        self._governance = governance
        self._metrics = metrics
        self._known: dict[LinkKey, Replicas] = {}
        self._resolving: dict[LinkKey, asyncio.Task[Replicas]] = {}
        self._clients: dict[tuple[str, int], ChannelClient] = {}

    async def call(
        self,
        principal: Principal,
        agent_id: str,
        payload: bytes,
        *,
        deadline_s: float,
        conversation: str | None = None,
        until_stopped: bool = False,
    ) -> bytes:
        """Return the agent's answer within `deadline_s`, a wake included; raises what the agent raised, or what kept the call.

        With `until_stopped` cancelling this waits until the agent has stopped its work.
        """
        key = (str(principal.tenant), agent_id, principal.subject, principal.scopes, principal.depth)
        ends = time.monotonic() + deadline_s
        for _ in range(ATTEMPTS):
            link = await self._link(key, principal, ends, conversation)
            try:
                left_s = ends - time.monotonic()
                return await link.client.call(payload, grant=link.grant, deadline_s=left_s, until_stopped=until_stopped)
            except (StaleGenerationError, GrantRefusedError):  # moved, or another agent has its port now
                self._forget(key, link)
            except AgentLostError:
                self._forget(key, link)
                raise
        raise self._moved(agent_id)

    async def stream(
        self,
        principal: Principal,
        agent_id: str,
        payload: bytes,
        *,
        deadline_s: float,
        conversation: str | None = None,
        until_stopped: bool = False,
    ) -> AgentStream:
        """Return the agent's answer as a stream, once its first piece or its end is there; `deadline_s` as for `call`.

        With `until_stopped` cancelling this waits until the agent has stopped its work.
        """
        key = (str(principal.tenant), agent_id, principal.subject, principal.scopes, principal.depth)
        ends = time.monotonic() + deadline_s
        for _ in range(ATTEMPTS):
            link = await self._link(key, principal, ends, conversation)
            stream = link.client.stream(payload, grant=link.grant, deadline_s=ends - time.monotonic())
            try:
                return AgentStream(await anext(stream, None), stream)
            except asyncio.CancelledError:
                if until_stopped:
                    await stream.stopped()
                raise
            except (StaleGenerationError, GrantRefusedError):  # moved, or another agent has its port now
                self._forget(key, link)
            except AgentLostError:
                self._forget(key, link)
                raise
        raise self._moved(agent_id)

    async def aclose(self) -> None:
        """Close every connection; calls under way end with AgentLostError."""
        await asyncio.gather(*(c.close() for c in self._clients.values()))

    async def _link(self, key: LinkKey, principal: Principal, ends: float, conversation: str | None) -> Link:
        try:
            return await self._find(key, principal, ends, conversation)
        except (SovereignError, asyncio.CancelledError) as error:
            note_unsent(error)
            raise

    async def _find(self, key: LinkKey, principal: Principal, ends: float, conversation: str | None) -> Link:
        known = self._known.get(key)
        if known is not None and (links := known.usable()):
            if len(links) < len(known.links) or known.stale_at < time.monotonic():
                self._look(key, principal, known.gone())  # for the calls after this one
                known.links = links
            return choose(links, conversation)
        task = self._look(key, principal, known.gone() if known is not None else 0)
        try:
            found = await asyncio.wait_for(asyncio.shield(task), ends - time.monotonic())
        except TimeoutError:
            raise DeadlineExceededError(f"The call's deadline passed before agent {key[1]} was ready for it.") from None
        return choose(found.usable() or found.links, conversation)

    def _look(self, key: LinkKey, principal: Principal, gone: int) -> asyncio.Task[Replicas]:
        task = self._resolving.get(key)
        if task is None:
            task = self._resolving[key] = asyncio.ensure_future(self._resolve(key, principal, gone))
            task.add_done_callback(lambda t: self._looked(key, t))
        return task

    def _looked(self, key: LinkKey, task: asyncio.Task[Replicas]) -> None:
        del self._resolving[key]
        if not task.cancelled() and task.exception() is not None and (known := self._known.get(key)) is not None:
            known.stale_at = time.monotonic() + REPLICAS_KNOWN_S  # whoever waits for it hears why; others go on

    async def _resolve(self, key: LinkKey, principal: Principal, gone: int) -> Replicas:
        """Ask governance, and open the connections; a dead one is told to governance, which wakes the agent anew."""
        began_ns = time.monotonic_ns()
        for _ in range(ATTEMPTS):
            with span("resolve_agent", kind="client", attributes={"gen_ai.agent.id": key[1]}):
                answer = await self._governance.call("resolve", principal.to_json(), key[1], gone)
            found = [Resolved.from_json(replica) for replica in answer["replicas"]]
            roads = await asyncio.gather(*(self._client(r.host, r.port) for r in found), return_exceptions=True)
            links = [
                Link(road, SessionGrant(r.ticket, r.session_key), r.generation, r.expires_us)
                for r, road in zip(found, roads, strict=True)
                if isinstance(road, ChannelClient)
            ]
            dead = [r.generation for r, road in zip(found, roads, strict=True) if not isinstance(road, ChannelClient)]
            for road in roads:
                if isinstance(road, BaseException) and not isinstance(road, UnavailableError):
                    raise road
            if not links:
                gone = dead[0]
                continue
            known_s = 0.0 if dead else math.inf if found[0].alone else REPLICAS_KNOWN_S
            while len(self._known) >= MAX_LINKS:
                del self._known[next(iter(self._known))]
            replicas = self._known[key] = Replicas(links, time.monotonic() + known_s)
            if self._metrics is not None:
                self._metrics.stage(Stage.RESOLVE, (time.monotonic_ns() - began_ns) // 1_000)
            return replicas
        raise self._moved(key[1])

    async def _client(self, host: str, port: int) -> ChannelClient:
        client = self._clients.get((host, port))
        if client is None or client.closed:
            self._clients = {k: c for k, c in self._clients.items() if not c.closed}
            client = await ChannelClient.connect(host, port)
            self._clients[host, port] = client
        return client

    def _forget(self, key: LinkKey, link: Link) -> None:
        """Send no call there any more. A closed connection stays known, so that governance is told of it."""
        known = self._known.get(key)
        if known is not None and link in known.links and not link.client.closed:
            known.links.remove(link)
            known.stale_at = 0.0
            if not known.links:
                del self._known[key]

    @staticmethod
    def _moved(agent_id: str) -> UnavailableError:
        error = UnavailableError(f"Agent {agent_id} is moving and did not settle.", hint="Retry in a moment.", retry_after_s=1)
        error.spent = (0, 0)
        return error
