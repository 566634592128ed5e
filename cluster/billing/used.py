"""Rows of the lake as what a card rates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from cluster.billing.rate_card import Meter
from cluster.billing.rating import Key

# The meters that are sums of a column; the others are counted.
COLUMNS: Final = tuple(str(meter) for meter in Meter if meter is not Meter.CALLS)


def used_by_tenant(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[tuple[Key, Meter], int]]:
    """Return each tenant's quantities, of rows by tenant, project, agent and model with `calls` and sums of COLUMNS."""
    used: dict[str, dict[tuple[Key, Meter], int]] = defaultdict(dict)
    for row in rows:
        key = Key(row["project_id"], row["agent_id"], row["model"] or "")
        for meter in Meter:
            if row[meter]:
                used[row["tenant_id"]][key, meter] = row[meter]
    return used
