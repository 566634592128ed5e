"""Places for gangs: Ray's placement groups, which hold room for all members or for none. Everything here blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ray.util.placement_group import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.agents.gang import Strategy
from cluster.agents.spec import Resources

# Ray would wait for ever for room that does not come.
GROUP_TIMEOUT_S: Final = 5.0


def hold_group(name: str, members: Sequence[Resources], selectors: Sequence[Mapping[str, str]], strategy: Strategy) -> list[Any]:
    """Return where each member is to start, in a detached group of this name, which is made unless it is there.

    `selectors` say on which nodes each may be. Returns nothing, and leaves nothing, when Ray finds no room for all within
    GROUP_TIMEOUT_S.
    """
    try:
        group = get_placement_group(name)
    except ValueError:
        group = placement_group(
            [{"CPU": m.cpu_milli / 1000, "memory": m.memory_bytes} for m in members],
            strategy=strategy.value.upper(),
            name=name,
            lifetime="detached",
            # Ray takes a selector for each, or none at all.
            bundle_label_selector=[dict(s) for s in selectors] if any(selectors) else None,
        )
    if not group.wait(GROUP_TIMEOUT_S):
        remove_placement_group(group)
        return []
    # The count is asked for here, because Ray would ask its control store for it on the event loop of whoever creates an actor.
    return [PlacementGroupSchedulingStrategy(group, index) for index in range(group.bundle_count)]


def release_group(name: str) -> None:
    """Give the room of a group back, if there is one of this name; what still runs in it is ended by Ray."""
    try:
        group = get_placement_group(name)
    except ValueError:
        return
    remove_placement_group(group)


def group_names(prefix: str) -> set[str]:
    """Return the names of the groups that begin with `prefix` and were not removed."""
    untyped: Any = placement_group_table
    table: dict[str, dict[str, Any]] = untyped()
    return {g["name"] for g in table.values() if g["name"].startswith(prefix) and g["state"] != "REMOVED"}
