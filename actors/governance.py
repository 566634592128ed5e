"""The governance actor: the only one that lets an agent exist, wakes it, and takes it away.

Decisions and records are `cluster.admission.registrar`'s, processes are `actors.agent_processes`'; this is the door to
both. It answers in JSON bytes (`{"ok": …}` or `{"problem": …}`), so that no exception has to cross by pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from functools import cache, partial
from typing import Any, Literal, TypeVar

from ray.exceptions import RayError

from actors.agent_processes import TICKET_TTL_S, AgentProcesses
from actors.nodes import nodes_of_ray, to_public
from actors.ray_actors import GOVERNANCE, Handle, create, find
from actors.ray_internals import ControlStore
from actors.reconciler import Reconciler
from actors.shipper import shipper_name, start_shipper
from cluster.admission.registrar import Registrar
from cluster.agents.gang_request import parse_gang
from cluster.agents.placement import Node
from cluster.agents.record import AgentRecord
from cluster.agents.registration import parse_registration
from cluster.agents.sandbox import SandboxWeakWarning
from cluster.errors import ConflictError, FieldError, NotFoundError, SovereignError, UnavailableError
from cluster.identity.ids import AgentId, TenantId
from cluster.identity.principal import Principal
from cluster.journal.gate import JournalGate
from cluster.limits.terms import bounds_to_json
from cluster.settings import Settings
from cluster.telemetry import tracing
from cluster.telemetry.ecs_log import configure_logging
from cluster.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
T = TypeVar("T")

# Threads of each kind that run decisions and transactions; each keeps a policy engine of its own.
THREADS = 8
FLUSH_TIMEOUT_S = 20.0
# Between two looks whether a policy engine that is a server has its policy.
HEAL_S = 2.0


def _answered(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[bytes]]:
    """Turn a coroutine's value or SovereignError into the JSON bytes that cross to the caller."""

    async def wrapped(self: GovernanceActor, *args: Any, trace: str = "", **kwargs: Any) -> bytes:
        # What nobody traces (it asks every second whether all is well, say) begins no trace of its own.
        traced = tracing.span(f"governance {method.__name__}", kind="server", parent=trace) if trace else nullcontext()
        try:
            with traced:
                return json.dumps({"ok": await method(self, *args, **kwargs)}).encode()
        except SovereignError as e:
            return json.dumps({"problem": e.to_problem()}).encode()
        except Exception:
            log.exception("governance failed in %s", method.__name__)
            raise

    wrapped.__name__ = method.__name__
    wrapped.__doc__ = method.__doc__
    return wrapped


class GovernanceActor:
    """Gate, ledger keeper and waker of agents. It may die at any instant: all that counts is in coordination and journal."""

    def __init__(self, settings: str) -> None:
        self._settings = Settings.from_json(settings)
        configure_logging("governance", level=self._settings.log_level, directory=self._settings.log_dir)
        # Apart, because a registration waits for its tenant's turn and for the disk, and no wake may wait behind that.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="governance")
        self._registering = ThreadPoolExecutor(THREADS, thread_name_prefix="registering")
        self._metrics = Metrics.of_process(self._settings.metrics_dir, "governance")
        tracing.configure_tracing("governance", self._settings, self._metrics.spans_dropped)
        self._gate = open_gate(self._settings)
        self._ready: asyncio.Task[None] | None = None
        self._registrar: Registrar
        self._processes: AgentProcesses
        self._reconciling: asyncio.Task[None] | None = None
        self._healing: asyncio.Task[None] | None = None

    async def _prepared(self) -> None:
        """Recover once, whoever comes first; until then nobody is answered. After a failure the next one tries again."""
        if self._ready is None or (self._ready.done() and (self._ready.cancelled() or self._ready.exception())):
            self._ready = asyncio.ensure_future(self._recover())
        await asyncio.shield(self._ready)

    @_answered
    async def ready(self) -> dict[str, Any]:
        """Return once what an earlier governor left was put right."""
        await self._prepared()
        return {"live": len(self._processes.live)}

    @_answered
    async def register(self, principal: str, body: bytes, request_id: str = "", idempotency_key: str = "") -> dict[str, Any]:
        """Admit an agent or raise; `body` is the registration's JSON. No process is started."""
        await self._prepared()
        who = Principal.from_json(principal)
        request = parse_registration(body)
        self._gate.check()
        register = partial(self._registrar.register, who, request, request_id=request_id, idempotency_key=idempotency_key)
        registration = await asyncio.get_running_loop().run_in_executor(self._registering, tracing.in_this_trace(register))
        record = registration.record
        self._processes.replicas.keep((str(record.tenant), str(record.spec.agent_id)), record.spec)
        return {"answer": registration.answer, "agent": registration.record.to_public(), "created": registration.created}

    @_answered
    async def change(
        self, principal: str, agent_id: str, body: bytes, request_id: str = "", if_match: str = ""
    ) -> dict[str, Any]:
        """Admit another spec for an agent or raise; processes of the earlier one are drained before this returns."""
        await self._prepared()
        who = Principal.from_json(principal)
        request = parse_registration(body)
        if request.agent_id != AgentId.parse(agent_id, "agent_id"):
            raise ConflictError(
                "The body names another agent than the path.", errors=[FieldError("agent_id", "must be the one of the path")]
            )
        self._gate.check()
        change = partial(self._registrar.change, who, request, if_match=if_match, request_id=request_id)
        record, changed = await asyncio.get_running_loop().run_in_executor(self._registering, tracing.in_this_trace(change))
        if changed:
            await self._processes.replace(record)
        return {"agent": record.to_public(), "changed": changed}

    @_answered
    async def register_gang(self, principal: str, body: bytes, request_id: str = "") -> dict[str, Any]:
        """Admit several agents, all or none, or raise. No process is started."""
        await self._prepared()
        who = Principal.from_json(principal)
        request = parse_gang(body)
        self._gate.check()
        register = partial(self._registrar.register_gang, who, request, request_id=request_id)
        records, created = await asyncio.get_running_loop().run_in_executor(self._registering, tracing.in_this_trace(register))
        for record in records:
            self._processes.replicas.keep((str(record.tenant), str(record.spec.agent_id)), record.spec)
        return {"gang_id": request.gang_id, "agents": [r.spec.agent_id for r in records], "created": created}

    @_answered
    async def get_gang(self, principal: str, gang_id: str) -> dict[str, Any]:
        """Return one gang of the caller's tenant."""
        await self._prepared()
        who = Principal.from_json(principal)
        gang = await self._run(partial(self._registrar.gang, who.tenant, AgentId.parse(gang_id, "gang_id")))
        return gang.to_public()

    @_answered
    async def remove_gang(self, principal: str, gang_id: str, request_id: str = "") -> dict[str, Any]:
        """Revoke all agents of a gang: their processes drain and end, and their room and quota come back."""
        await self._prepared()
        who = Principal.from_json(principal)
        gang_name = AgentId.parse(gang_id, "gang_id")
        members = await self._run(partial(self._registrar.gang_members, who.tenant, gang_name))
        gang = await self._run(partial(self._registrar.remove_gang, who.tenant, gang_name, who, request_id=request_id))
        await self._processes.remove_gang(gang)
        for record in members:
            await self._run(partial(forget_conversations, self._settings, record))
        return {"status": "removed", "gang_id": gang.gang_id, "agents": list(gang.agents)}

    @_answered
    async def get(self, principal: str, agent_id: str) -> dict[str, Any]:
        """Return one agent of the caller's tenant."""
        await self._prepared()
        who = Principal.from_json(principal)
        record = await self._run(partial(self._registrar.get, who.tenant, AgentId.parse(agent_id, "agent_id")))
        return self._public(who.tenant, record)

    @_answered
    async def terms(self, tenant: str, agent_id: str) -> dict[str, Any]:
        """Return what bounds the calls of an agent; for the limiter."""
        await self._prepared()
        terms = await self._run(partial(self._registrar.terms, TenantId(tenant), AgentId.parse(agent_id, "agent_id")))
        return terms.to_json()

    @_answered
    async def tenant_bounds(self, tenant: str) -> list[list[Any]]:
        """Return what bounds all calls of a tenant together; for the limiter."""
        await self._prepared()
        return bounds_to_json(await self._run(partial(self._registrar.tenant_bounds, TenantId(tenant))))

    @_answered
    async def caller_terms(self, tenant: str, scope: str, name: str) -> dict[str, Any]:
        """Return what bounds the calls of a project or key beside its tenant's plan; for the limiter."""
        await self._prepared()
        terms = await self._run(partial(self._registrar.tenancy.allowances.terms, tenant, scope, name))
        return terms.to_json()

    @_answered
    async def list(self, principal: str, after: str, limit: int) -> dict[str, Any]:
        """Return up to `limit` agents of the caller's tenant with ids after `after`."""
        await self._prepared()
        who = Principal.from_json(principal)
        begin = AgentId.parse(after, "after") if after else ""
        records = await self._run(partial(self._registrar.list, who.tenant, begin, limit))
        following = records[-1].spec.agent_id if len(records) == limit else ""
        return {"agents": [self._public(who.tenant, r) for r in records], "next": following}

    @_answered
    async def remove(self, principal: str, agent_id: str, request_id: str = "") -> dict[str, Any]:
        """Revoke an agent: it does not wake again, its process drains and ends, its quota comes back."""
        await self._prepared()
        who = Principal.from_json(principal)
        agent = AgentId.parse(agent_id, "agent_id")
        record = await self._run(partial(self._registrar.remove, who.tenant, agent, who, request_id=request_id))
        await self._processes.end(who.tenant, agent)
        await self._run(partial(forget_conversations, self._settings, record))
        return {"status": "removed", "agent_id": agent}

    @_answered
    async def resolve(self, principal: str, agent_id: str, not_generation: int = 0) -> dict[str, Any]:
        """Return `{"replicas": […]}`: where each answers with a ticket for the caller, waking the agent when it is passive.

        `not_generation` names a generation that the caller found gone; it is looked after before it is handed out again.
        """
        await self._prepared()
        who = Principal.from_json(principal)
        agent = AgentId.parse(agent_id, "model")
        self._gate.check()
        await self._run(partial(self._registrar.invocations.check, who, agent, ttl_s=TICKET_TTL_S))
        found = await self._processes.resolve(who.tenant, agent, who.subject, not_generation)
        return {"replicas": [resolved.to_json() for resolved in found]}

    @_answered
    async def administer(
        self, principal: str, operation: str, named: dict[str, str], body: bytes = b"", request_id: str = ""
    ) -> Any:
        """List, make or change tenants, projects and keys, as `Tenancy.answer` has it."""
        await self._prepared()
        who = Principal.from_json(principal)
        return await self._run(partial(self._registrar.tenancy.answer, who, operation, named, body, request_id))

    @_answered
    async def fill_pool(self) -> dict[str, Any]:
        """Fill the warm pool; called when the cluster is ready."""
        await self._prepared()
        self._processes.pool.fill()
        return {}

    @_answered
    async def status(self) -> dict[str, Any]:
        """Return live agents with what is enforced on each, what confines tools, and the warm pool."""
        await self._prepared()
        sandbox = await self._run(partial(describe_sandbox, self._settings.sandbox))
        return {
            "live": [
                {"tenant": x.key[0], "agent_id": x.key[1], "generation": x.generation, "enforcement": x.enforcement}
                for x in sorted(self._processes.live, key=lambda x: (x.key, x.generation))
            ],
            "sandbox": sandbox,
            "policy": self._registrar.policy_status(),
            "warm_pool": self._processes.pool.size,
        }

    @_answered
    async def cluster_settings(self) -> str:
        """Return the settings of the cluster as JSON, for a node that joins it."""
        return self._settings.to_json()

    @_answered
    async def admit_node(self, name: str, metrics_port: int) -> dict[str, Any]:
        """Give a node that joined a shipper, and let it take agents."""
        # Created here and not by the node's own driver, whose actors are strays to the reconciler, as any other driver's are.
        await self._prepared()
        node = await self._node(name)
        shipper = await self._run(partial(start_shipper, self._settings, node.ray_id, metrics_port))
        try:
            await asyncio.wait_for(shipper.ready.remote(), FLUSH_TIMEOUT_S)
        except (RayError, TimeoutError) as e:
            raise UnavailableError(f"The shipper of node {name} did not start: {e}.") from e
        if name in self._processes.nodes.cordoned:
            await self._resume(name, "join")
        return {"node": name}

    @_answered
    async def nodes(self) -> dict[str, Any]:
        """Return every node, the head first, with its state and the number of agents on it."""
        await self._prepared()
        known = self._processes.nodes
        known.learn(await self._run(nodes_of_ray))
        agents = Counter(live.node or known.home for live in self._processes.live)
        waiting = await self._unshipped()
        return {
            "nodes": [
                to_public(node, node.name in known.cordoned, agents[node.name]) | {"unshipped": waiting.get(node.name, "")}
                for node in known.all
            ]
        }

    async def _unshipped(self) -> dict[str, str]:
        """Return the nodes that are gone and whose journals can't be shipped, each with the reason."""
        home = next((n.ray_id for n in self._processes.nodes.all if n.head and n.alive), "")
        with contextlib.suppress(RayError, ValueError, TimeoutError):
            shipper = await self._run(partial(find, shipper_name(home)))
            said: dict[str, str] = json.loads(await asyncio.wait_for(shipper.waiting.remote(), FLUSH_TIMEOUT_S))
            return said
        return {}

    @_answered
    async def drain_node(self, name: str, actor: str) -> dict[str, Any]:
        """Place nothing new on a node, end the agents that it has, and ship what they wrote; they wake elsewhere when called."""
        await self._prepared()
        node = await self._node(name)
        known = self._processes.nodes
        await self._run(partial(self._registrar.cordons.put, name, actor))
        known.cordoned |= {name}
        ended = await self._processes.end_on(name)
        log.info("node %s takes no agents any more; %d were ended", name, ended)
        return {"node": name, "ended": ended, "shipped": node.alive and await self._flush(node.ray_id)}

    @_answered
    async def resume_node(self, name: str, actor: str) -> dict[str, Any]:
        """Let a node take agents again."""
        await self._prepared()
        if name in self._processes.nodes.cordoned:
            await self._resume(name, actor)
        else:
            await self._node(name)
        return {"node": name}

    @_answered
    async def renew_agents(self) -> int:
        """End the agents' processes one after the other, none of them under a call, and return how many there were."""
        await self._prepared()
        return await self._processes.renew(self._settings.call_timeout_s)

    @_answered
    async def push_policy(self, artefact: bytes, actor: str) -> dict[str, Any]:
        """Put a signed policy bundle in force; what is refused changes nothing."""
        await self._prepared()
        return asdict(await self._run(partial(self._registrar.bundles.push, artefact, actor)))

    @_answered
    async def policies(self) -> dict[str, Any]:
        """Return every policy bundle that was accepted, and which is in force."""
        await self._prepared()
        return await self._run(self._registrar.bundles.list)

    async def _resume(self, name: str, actor: str) -> None:
        await self._run(partial(self._registrar.cordons.lift, name, actor))
        self._processes.nodes.cordoned -= {name}

    async def _node(self, name: str) -> Node:
        known = self._processes.nodes
        known.learn(await self._run(nodes_of_ray))
        for node in known.all:
            if node.name == name:
                return node
        raise NotFoundError(f"There is no node {name[:80]!r}.", hint="`sovereign nodes list` shows which there are.")

    async def _flush(self, ray_id: str) -> bool:
        """Ship what the node's journals hold by now; returns whether all of it is in the lake."""
        try:
            shipper = await self._run(partial(find, shipper_name(ray_id)))
            report = json.loads(await asyncio.wait_for(shipper.flush.remote(), FLUSH_TIMEOUT_S))
        except (RayError, ValueError, TimeoutError) as e:
            log.warning("what the node wrote is not shipped yet: %s", e)
            return False
        return not report["store_error"] and not report["backlog_bytes"]

    @_answered
    async def drain_all(self) -> dict[str, Any]:
        """Passivate every agent, for a stop of the node."""
        await self._prepared()
        for task in (self._reconciling, self._healing):
            if task is not None:
                task.cancel()
        drained = await self._processes.end_all()
        self._registrar.close()
        self._metrics.flush()
        await self._run(tracing.flush)
        return {"drained": drained}

    async def _recover(self) -> None:
        """Put right what an earlier governor left midway: decisions without outcome, starts without end, strays."""
        self._registrar = await self._run(partial(open_registrar, self._settings))
        try:
            await self._run(self._registrar.recover)
            self._processes = AgentProcesses(self._settings, self._registrar, self._metrics, self._run)
            with contextlib.suppress(RayError, OSError):  # otherwise it learns them in a moment
                self._processes.nodes.learn(await self._run(nodes_of_ray))
            self._registrar.know_nodes(lambda: self._processes.nodes.all)
            await self._processes.recover()
        except BaseException:
            self._registrar.close()
            raise
        reconciler = Reconciler(GOVERNANCE, self._processes, self._registrar, ControlStore, self._run)
        self._reconciling = asyncio.ensure_future(reconciler.look_for_ever())
        self._healing = asyncio.ensure_future(self._heal_for_ever())
        log.info("governance is ready: %d agents live", len(self._processes.live))

    async def _heal_for_ever(self) -> None:
        """Give the policy engine its policy again whenever it has lost it."""
        while True:
            await asyncio.sleep(HEAL_S)
            try:
                await self._run(self._registrar.bundles.heal)
            except SovereignError as e:
                log.warning("nothing is admitted, for the policy engine can't be given its policy: %s", e)
            except Exception:
                log.exception("whether the policy engine has its policy is not known; it is asked again")

    def _public(self, tenant: TenantId, record: AgentRecord) -> dict[str, Any]:
        live = self._processes.live.of((str(tenant), str(record.spec.agent_id)))
        return record.to_public() | {"enforcement": live[-1].enforcement if live else None}

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, tracing.in_this_trace(function))


def open_registrar(settings: Settings) -> Registrar:
    """Open governance's ledger: a new epoch fences off every earlier governor, and its journal is registered first."""
    from cluster import wiring

    return wiring.build_registrar(settings)


def open_gate(settings: Settings) -> JournalGate:
    """Return what says whether this node may take on anything new."""
    from cluster import wiring

    return wiring.journal_gate(settings)


@cache
def describe_sandbox(kind: Literal["auto", "bubblewrap", "process"]) -> dict[str, Any]:
    """Return the walls round tools on this node, whose start chose the sandbox `kind`."""
    from cluster import wiring

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SandboxWeakWarning)  # it was said at start, and the answer says it again
        return wiring.open_sandbox(kind, probed=kind != "auto").describe()


def forget_conversations(settings: Settings, record: AgentRecord) -> None:
    """Remove what a removed agent remembered, so that no later agent of its name reads it."""
    from cluster import wiring

    path = wiring.checkpoint_path(settings, record)
    for file in path.parent.glob(path.name + "*"):
        file.unlink(missing_ok=True)


def start_governance(settings: Settings) -> Handle:
    """Create the governance actor of this cluster, or return the one that runs."""
    return create(GovernanceActor, settings.to_json(), name=GOVERNANCE, restarts=True, concurrency=4096, on_head=True)
