"""Which journals exist: each is registered before its first fact, so that a lost one is missed.

`/journals/<writer id>/<epoch>` holds who writes and on which node.
"""

from __future__ import annotations

import json

from cluster.coordination.coordination import Coordination, CoordinationConflictError, Create, Op, Set
from cluster.coordination.epochs import increment
from cluster.errors import UnavailableError

_ATTEMPTS = 200


def journal_entry(writer_id: str, epoch: int, node: str) -> Op:
    """Return the operation that registers one journal; it conflicts when that epoch was registered before.

    `node` is empty while it is not known yet where the writer will be.
    """
    return Create(_path(writer_id, epoch), _value(writer_id, epoch, node))


def journal_place(writer_id: str, epoch: int, node: str) -> Op:
    """Return the operation that says on which node a registered journal is written."""
    return Set(_path(writer_id, epoch), _value(writer_id, epoch, node))


def register_journal(coordination: Coordination, writer_id: str, node: str) -> int:
    """Register the next journal of `writer_id` on `node` and return its epoch, counted from 1.

    The epoch is also that of the name `journal.<writer id>` in `epochs.py`. Raises UnavailableError when others keep taking it.
    """
    for _ in range(_ATTEMPTS):
        epoch, op = increment(coordination, f"journal.{writer_id}")
        try:
            coordination.transact([op, journal_entry(writer_id, epoch, node)])
        except CoordinationConflictError:
            continue
        return epoch
    raise UnavailableError(f"No journal of {writer_id} could be registered: too many others do so at the same time.")


def journal_node(coordination: Coordination, writer_id: str, epoch: int) -> str | None:
    """Return the node on which a journal is written, empty when it is not known yet; None for one that is not registered."""
    found = coordination.get(_path(writer_id, epoch))
    return None if found is None else str(json.loads(found.value)["node"])


def registered_epochs(coordination: Coordination, writer_id: str) -> list[int]:
    """Return the epochs of all journals of `writer_id`, ascending."""
    epochs: list[int] = []
    after = ""
    while names := coordination.children(f"/journals/{writer_id}", after=after):
        epochs += [int(n) for n in names]
        after = names[-1]
    return sorted(epochs)


def _path(writer_id: str, epoch: int) -> str:
    return f"/journals/{writer_id}/{epoch}"


def _value(writer_id: str, epoch: int, node: str) -> bytes:
    return json.dumps({"writer_id": writer_id, "epoch": epoch, "node": node}, sort_keys=True).encode()
