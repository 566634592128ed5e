"""How many replicas an agent is to have. Pure: the same reports at the same times give the same number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cluster.agents.spec import AgentSpec

# A crowd must last so long before a replica is added for it, and be gone so long before one is taken away.
UP_DELAY_S: Final = 1.0
DOWN_DELAY_S: Final = 5.0
# And no replica goes before the crowd has been gone for so many of its slow calls: the next of them may be on its way.
DOWN_CALLS: Final = 2.0
LONGEST_DOWN_DELAY_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What one replica says that it has to do."""

    # Under way, with those that wait in it.
    calls: int = 0
    # What 95 of 100 of its last calls took at most.
    p95_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Trend:
    """What was seen up to now: since when there are too few or too many replicas, and the most that were wanted meanwhile."""

    few_since: float | None = None
    many_since: float | None = None
    peak: int = 0


def desired_replicas(loads: Sequence[ReplicaLoad], spec: AgentSpec, trend: Trend, now: float) -> tuple[int, Trend]:
    """Return how many replicas there are to be, and the trend to give next time; one report for each that there is.

    Never outside the spec's bounds. The last one is not taken away here, whatever the lower bound: an agent that nobody
    calls gives it up by itself, after its idle time.
    """
    have, calls = len(loads), sum(load.calls for load in loads)
    lowest = max(spec.min_replicas, min(have, 1))
    wanted = min(max(math.ceil(calls / spec.target_queue), lowest), spec.max_replicas)
    if have < spec.min_replicas:
        return max(spec.min_replicas, wanted), Trend()
    if wanted > have:
        since = now if trend.few_since is None else trend.few_since
        return (wanted, Trend()) if now - since >= UP_DELAY_S else (have, Trend(few_since=since))
    if wanted < have:
        since = now if trend.many_since is None else trend.many_since
        peak = max(trend.peak, wanted)
        slow_s = max((load.p95_s for load in loads), default=0.0)
        delay_s = min(max(DOWN_DELAY_S, DOWN_CALLS * slow_s), LONGEST_DOWN_DELAY_S)
        if now - since >= delay_s or have > spec.max_replicas:
            return min(peak, spec.max_replicas), Trend()
        return have, Trend(many_since=since, peak=peak)
    return have, Trend()
