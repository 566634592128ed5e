"""Epochs: each life of a writer has a number, and what it writes holds only while no later life has begun.

The node `/epochs/<name>` has version `epoch - 1` at all times, so that a transaction can be fenced by one `Check`.
"""

from __future__ import annotations

from cluster.coordination.coordination import Check, Coordination, CoordinationConflictError, Create, Op, Set
from cluster.errors import IntegrityError, UnavailableError

_ATTEMPTS = 200


def epoch_path(name: str) -> str:
    """Return the node that counts the lives of `name`."""
    return f"/epochs/{name}"


def next_epoch(coordination: Coordination, name: str) -> int:
    """Begin a new life of `name` and return its epoch, counted from 1; every earlier life is fenced off from then on.

    Raises UnavailableError when others begin lives of the same name faster than this one can.
    """
    for _ in range(_ATTEMPTS):
        epoch, op = increment(coordination, name)
        try:
            coordination.transact([op])
        except CoordinationConflictError:
            continue
        return epoch
    raise UnavailableError(f"No epoch of {name} could be taken: too many others begin at the same time.")


def current_epoch(coordination: Coordination, name: str) -> int:
    """Return the epoch that holds now; 0 when no life of `name` has begun."""
    node = coordination.get(epoch_path(name))
    if node is None:
        return 0
    if node.value != str(node.version + 1).encode():
        raise IntegrityError(f"{epoch_path(name)} was changed by something that is no epoch: version {node.version}.")
    return node.version + 1


def increment(coordination: Coordination, name: str) -> tuple[int, Op]:
    """Return the next epoch and the operation that takes it; the operation conflicts when someone else took it first."""
    epoch = current_epoch(coordination, name) + 1
    value = str(epoch).encode()
    return epoch, Create(epoch_path(name), value) if epoch == 1 else Set(epoch_path(name), value, epoch - 2)


def fence(name: str, epoch: int) -> Check:
    """Return the operation that makes a transaction fail once a life of `name` after `epoch` has begun."""
    return Check(epoch_path(name), epoch - 1)
