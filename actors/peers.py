"""How an agent reaches the others: as itself, by the road that every call takes, and only while the call lasts that it is for."""

from __future__ import annotations

import time
from typing import Final

from actors.directory import Directory, Governance
from actors.invoker import Invocation, Invoker
from cluster.agents.budget import NO_BUDGET, Budget
from cluster.agents.call import CURRENT_METER, Call
from cluster.errors import DeadlineExceededError, SovereignError
from cluster.identity.ids import AgentId, ProjectId, TenantId, uuid7
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope

# What one agent may have asked of others at once.
MAX_CALLS: Final = 64


class PeerInvoker:
    """The other agents of the tenant, for one agent."""

    def __init__(self, tenant: str, agent_id: str) -> None:
        self._tenant = TenantId(tenant)
        self._agent_id = agent_id
        # Made with the first question: most agents never ask one.
        self._invoker: Invoker | None = None

    async def ask(self, agent_id: str, question: str, call: Call) -> str:
        """Return the agent's answer; as `cluster.agents.delegation.Peers` has it."""
        if self._invoker is None:
            self._invoker = Invoker(Directory(Governance()), places=MAX_CALLS)
        left_s = (call.ends_ns - time.monotonic_ns()) / 1e9
        if left_s <= 0:
            raise DeadlineExceededError("The call's deadline passed before another agent could be asked.")
        who = Principal(
            self._tenant,
            ProjectId(call.project_id),
            f"agent:{self._agent_id}",
            frozenset({Scope.AGENTS_INVOKE}),
            agent=self._agent_id,
            depth=call.depth + 1,
        )
        invocation_id, lent = uuid7(), NO_BUDGET
        if call.budget is not None:
            lent = call.budget.lend(CURRENT_METER.get().quantities())
        invocation = Invocation(
            who,
            AgentId.parse(agent_id, "agent_id"),
            [{"role": "user", "content": question}],
            left_s,
            request_id=call.request_id,
            parent_invocation_id=call.invocation_id,
            # Of its own, so that each of the two ends once; it begins with its caller's, by which both are found.
            reservation_id=f"{call.reservation_id}.{invocation_id}" if lent else "",
            budget=lent,
            invocation_id=invocation_id,
            # A call has not stopped while anything of it runs.
            until_stopped=True,
        )
        spent: Budget | None = None
        try:
            answer = await self._invoker.run(invocation)
            spent = Budget(*answer.spent)
        except SovereignError as error:
            spent = None if error.spent is None else Budget(*error.spent)
            raise
        finally:
            if call.budget is not None:
                call.budget.repaid(lent, spent)
        return answer.text

    async def aclose(self) -> None:
        """Close the connections to other agents."""
        if self._invoker is not None:
            await self._invoker.aclose()
