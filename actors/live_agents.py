"""The processes that answer, by agent and generation."""

from __future__ import annotations

from collections.abc import Iterator

from actors.agent_process import AgentProcess, Key
from cluster.telemetry.metrics import Metrics


class LiveAgents:
    """Who takes a process out acts on its end; everybody else finds that it is not there any more. For one event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._agents: dict[Key, dict[int, AgentProcess]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[AgentProcess]:
        return iter([process for processes in self._agents.values() for process in processes.values()])

    def __contains__(self, process: object) -> bool:
        return isinstance(process, AgentProcess) and self._agents.get(process.key, {}).get(process.generation) is process

    def of(self, key: Key) -> list[AgentProcess]:
        """Return the agent's processes, oldest generation first."""
        return list(self._agents.get(key, {}).values())

    def spare(self, process: AgentProcess) -> bool:
        """Whether its agent has more processes than it is to have while nobody calls; members of a gang stay together."""
        return not process.gang and len(self._agents.get(process.key, {})) > process.spec.min_replicas

    def put(self, process: AgentProcess) -> None:
        """Add a process."""
        self._agents.setdefault(process.key, {})[process.generation] = process
        self._changed(1)

    def take(self, process: AgentProcess) -> bool:
        """Forget a process; returns whether it was known, so that only one of those who notice its end acts on it."""
        if process not in self:
            return False
        of_agent = self._agents[process.key]
        del of_agent[process.generation]
        if not of_agent:
            del self._agents[process.key]
        self._changed(-1)
        return True

    def _changed(self, by: int) -> None:
        self._count += by
        self._metrics.live_agents(self._count)
