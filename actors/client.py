"""The Python client for code that runs inside the cluster: jobs, workflows, operators' scripts.

    governance = await connect(tenant="default")
    registration = await governance.register_agent(agent_id="…", capabilities=["…"])
    answer = await governance.invoke("…", "What is the capital of France?")

In a job `connect()` finds the cluster by itself and works as whoever submitted the job, by its metadata. Who holds the
cluster's Ray token is an operator: the tenant is taken at their word here, and never from an HTTP client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson

from actors.directory import Directory, Governance
from actors.invoker import Invocation, Invoker
from actors.leases import Leases
from actors.wire import CallAnswer
from cluster.identity.ids import ProjectId, TenantId, uuid7
from cluster.identity.principal import Principal
from cluster.jobs.job import operator
from cluster.settings import Settings

# Calls of one client at once; more are refused, as at the way in.
MAX_CALLS = 1_000


class GovernanceClient:
    """Registers, finds, calls and removes the agents of one tenant."""

    def __init__(self, governance: Governance, principal: Principal, leases: Leases, *, parent_invocation_id: str = "") -> None:
        self._governance = governance
        self._principal = principal
        self._parent_invocation_id = parent_invocation_id
        self._invoker = Invoker(Directory(governance), places=MAX_CALLS, leases=leases)

    async def register_agent(
        self,
        agent_id: str,
        capabilities: Sequence[str],
        security_policy: dict[str, Any] | None = None,
        compliance_requirements: Sequence[str] | None = None,
        *,
        model: str | None = None,
        instructions: str | None = None,
        budget: dict[str, int] | None = None,
        min_replicas: int | None = None,
        max_replicas: int | None = None,
        target_queue: int | None = None,
        idempotency_key: str = "",
    ) -> dict[str, Any]:
        """Register an agent, or find it registered already; nothing is started.

        Returns `{"status": "registered", "agent_id": …, "security_clearance": "validated"}`. Without `security_policy`
        the tenant's default policy holds. Raises AdmissionDeniedError, which names every failed check;
        QuotaExceededError; InvalidRequestError, which names every wrong field; ConflictError when the id is taken by
        another spec.
        """
        body: dict[str, Any] = {"agent_id": agent_id, "capabilities": list(capabilities)}
        optional = {
            "security_policy": security_policy,
            "compliance_requirements": None if compliance_requirements is None else list(compliance_requirements),
            "model": model,
            "instructions": instructions,
            "budget": budget,
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_queue": target_queue,
        }
        body |= {k: v for k, v in optional.items() if v is not None}
        answer = await self._governance.call("register", self._principal.to_json(), orjson.dumps(body), uuid7(), idempotency_key)
        registration: dict[str, Any] = answer["answer"]
        return registration

    async def update_agent(self, body: dict[str, Any], *, if_match: str = "") -> dict[str, Any]:
        """Make a registered agent what `body`, a whole registration, says; processes of its earlier spec are drained first.

        `if_match` is the `spec_digest` that is to be changed, empty for any. Returns `{"agent": …, "changed": …}`. Raises as
        `register_agent` does, NotFoundError, and PreconditionFailedError when the agent has another spec by now.
        """
        agent_id = str(body.get("agent_id", ""))
        answer: dict[str, Any] = await self._governance.call(
            "change", self._principal.to_json(), agent_id, orjson.dumps(body), uuid7(), if_match
        )
        return answer

    async def register_gang(self, gang_id: str, agents: Sequence[dict[str, Any]], *, strategy: str = "pack") -> dict[str, Any]:
        """Register several agents, all or none, which also start and go together; each of `agents` is a registration.

        Returns `{"gang_id": …, "agents": […], "created": …}`. Raises as `register_agent` does, for all of them.
        """
        body = {"gang_id": gang_id, "agents": list(agents), "strategy": strategy}
        answer: dict[str, Any] = await self._governance.call(
            "register_gang", self._principal.to_json(), orjson.dumps(body), uuid7()
        )
        return answer

    async def remove_gang(self, gang_id: str) -> dict[str, Any]:
        """Revoke all agents of a gang; raises NotFoundError."""
        removed: dict[str, Any] = await self._governance.call("remove_gang", self._principal.to_json(), gang_id, uuid7())
        return removed

    async def show_agent(self, agent_id: str) -> dict[str, Any]:
        """Return the agent's record; raises NotFoundError."""
        record: dict[str, Any] = await self._governance.call("get", self._principal.to_json(), agent_id)
        return record

    async def list_agents(self, *, after: str = "", limit: int = 100) -> dict[str, Any]:
        """Return `{"agents": […], "next": …}`, in order of id."""
        page: dict[str, Any] = await self._governance.call("list", self._principal.to_json(), after, limit)
        return page

    async def remove_agent(self, agent_id: str) -> dict[str, Any]:
        """Revoke the agent; raises NotFoundError."""
        removed: dict[str, Any] = await self._governance.call("remove", self._principal.to_json(), agent_id, uuid7())
        return removed

    async def invoke(
        self, agent_id: str, text: str, *, conversation_id: str | None = None, deadline_s: float = 120.0
    ) -> CallAnswer:
        """Return the agent's answer to `text`; its usage fact is in the journal before this returns."""
        return await self._invoker.run(self._invocation(agent_id, text, conversation_id, deadline_s))

    async def stream(
        self, agent_id: str, text: str, *, conversation_id: str | None = None, deadline_s: float = 120.0
    ) -> AsyncIterator[str]:
        """Yield the agent's answer to `text` piece by piece; leaving early stops the agent's work."""
        stream = await self._invoker.open(self._invocation(agent_id, text, conversation_id, deadline_s))
        try:
            async for piece in stream:
                yield piece
        finally:
            await stream.aclose()

    async def aclose(self) -> None:
        """Close the connections to agents."""
        await self._invoker.aclose()

    def _invocation(self, agent_id: str, text: str, conversation_id: str | None, deadline_s: float) -> Invocation:
        return Invocation(
            self._principal,
            agent_id,
            [{"role": "user", "content": text}],
            deadline_s,
            conversation_id=conversation_id,
            request_id=uuid7(),
            parent_invocation_id=self._parent_invocation_id,
        )


async def connect(
    *, tenant: str | None = None, project: str | None = None, subject: str | None = None, settings: Settings | None = None
) -> GovernanceClient:
    """Return a client; connects this process to the cluster of `settings` unless it is connected already.

    In a job the cluster is the one that runs it, and what is not given comes from the job's metadata; elsewhere it is
    "default", "default" and "operator". A job that nothing measures yet is measured from here on. Raises
    UnavailableError when no cluster runs under the settings' home, InvalidRequestError for a wrong name.
    """
    import ray

    from actors.job_meter import meter_this_process, running_job

    job = running_job()
    if not ray.is_initialized():  # blocks for a moment, once: Ray wants the main thread
        from actors.ray_connection import connect_job, connect_to

        if job is None:
            connect_to(settings or Settings.load())
        else:
            connect_job()
    if job is not None and not job.run:
        job = meter_this_process(settings or Settings.load(), job)
    given = operator() if job is None else job.principal
    principal = Principal(
        TenantId.parse(tenant or given.tenant, "tenant"),
        ProjectId.parse(project or given.project, "project"),
        subject or given.subject,
        given.scopes,
    )
    return GovernanceClient(
        Governance(), principal, Leases(settings or Settings.load()), parent_invocation_id="" if job is None else job.run
    )
