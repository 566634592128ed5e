"""Compares the actors that live in Ray with the ledger: ends strays, and puts right the rows of agents that vanished.

Ray lets any holder of its token create actors; this finds them afterwards and ends them. It is detection, not a wall
(docs/threat-model.md). What is a stray is `cluster.admission.reconciliation`'s to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from ray.exceptions import RayError

from actors.agent_processes import AgentProcesses
from actors.background import Runner
from actors.limiter import LIMITER
from actors.local_model import NAME as LOCAL_MODEL
from actors.ray_environment import NAMESPACE
from actors.ray_internals import JOB_ID_KEY, JOB_SUPERVISORS, SERVE_ACTORS, SERVE_CONTROLLER, ControlStore
from actors.shipper import shipper_name
from cluster.admission.reconciliation import MayLive, Place, Reconciliation, SeenActor
from cluster.admission.registrar import Registrar
from cluster.errors import SovereignError
from cluster.jobs.job import Job

log = logging.getLogger(__name__)

# A stray is found by the look after its creation, and ended by the one after that.
INTERVAL_S = 1.0


class Reconciler:
    """Looks as long as its governor lives. For one event loop; all that blocks is handed to `run`."""

    def __init__(
        self, own_name: str, processes: AgentProcesses, registrar: Registrar, connect: Callable[[], ControlStore], run: Runner
    ) -> None:
        self._processes = processes
        self._registrar = registrar
        self._connect = connect
        self._store: ControlStore | None = None
        self._run = run
        self._reconciliation = Reconciliation()
        self._parts = (
            Place(NAMESPACE, own_name),
            Place(NAMESPACE, LIMITER),
            Place(NAMESPACE, LOCAL_MODEL),
            Place(NAMESPACE, shipper_name("")),
            Place(*SERVE_ACTORS),
        )
        # Of the jobs that have actors now: the tenant that each works for, None where it is no submitted job.
        self._tenants: dict[str, str | None] = {}
        # Strays that were written down and are yet to end: each is one fact, however often it must be ended.
        self._recorded: set[str] = set()

    async def look_for_ever(self) -> None:
        """Look, and go on whatever happens: Ray's control store and the ledger may be away for a while."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.look()
            except (SovereignError, RayError) as e:
                log.warning("actors were not compared with the ledger: %s", str(e)[:300])
            except Exception:
                log.exception("the comparison of actors with the ledger failed; it goes on")

    async def look(self) -> None:
        """Look once, and act on what this look and the last one agree on; raises SovereignError when something is away."""
        if self._store is None:
            self._store = await self._run(self._connect)
        store = self._store
        # The ledger last: the row of an agent is older than its actor.
        actors = await self._run(store.live_actors)
        rows = await self._processes.rows_by_name()
        platform = {store.own_job} | {a.job_id for a in actors if (a.namespace, a.name) == SERVE_CONTROLLER}
        await self._learn_tenants(store, {a.job_id for a in actors} - platform)
        free = {job for job, tenant in self._tenants.items() if tenant and self._registrar.may_have_raw_actors(tenant)}
        may_live = MayLive(NAMESPACE, rows.keys(), platform, self._parts, (Place(*JOB_SUPERVISORS),), free)
        findings = self._reconciliation.look(actors, may_live)
        self._recorded &= {a.actor_id for a in actors}
        for stray in findings.strays:
            await self._end(store, stray)
        for name in findings.vanished:
            await self._processes.put_right(rows[name])

    async def _learn_tenants(self, store: ControlStore, jobs: set[str]) -> None:
        known = self._tenants
        self._tenants = {j: known[j] if j in known else await self._run(partial(_tenant_of, store, j)) for j in jobs}

    async def _end(self, store: ControlStore, stray: SeenActor) -> None:
        if stray.actor_id not in self._recorded:
            await self._run(partial(self._registrar.record_stray, stray, self._tenants.get(stray.job_id) or ""))
            self._recorded.add(stray.actor_id)
        log.warning("ending actor %s of job %s (pid %d): no record stands behind it", stray.actor_id, stray.job_id, stray.pid)
        await self._run(partial(store.kill_actor, stray.actor_id))


def _tenant_of(store: ControlStore, job_id: str) -> str | None:
    """Return the tenant that a submitted job says it works for; None for any other driver, and for one unknown."""
    metadata = store.job_metadata(job_id)
    if JOB_ID_KEY not in metadata:
        return None
    try:
        return str(Job.from_metadata(metadata).principal.tenant)
    except SovereignError:
        return None
