"""A store in memory, for tests that make tens of thousands of transactions; the contract is tested on the real ones."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.coordination.coordination import (
    ABSENT,
    Check,
    CoordinationConflictError,
    Create,
    Delete,
    Node,
    Op,
    Set,
    check_ops,
)


class MemoryCoordination:
    """Nodes in a dictionary; outlives whoever uses it."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def get(self, path: str) -> Node | None:
        return self.nodes.get(path)

    def children(self, path: str, *, after: str = "", limit: int = 1000) -> list[str]:
        names = {p[len(path) + 1 :].partition("/")[0] for p in self.nodes if p.startswith(path + "/")}
        return sorted(n for n in names if n > after)[:limit]

    def transact(self, ops: Sequence[Op]) -> None:
        check_ops(ops)
        nodes = dict(self.nodes)
        for index, op in enumerate(ops):
            node = nodes.get(op.path)
            version = ABSENT if node is None else node.version
            if isinstance(op, Create):
                if node is not None:
                    raise CoordinationConflictError.of(index, op, "exists")
                nodes[op.path] = Node(op.value, 0)
                continue
            wanted = op.version if isinstance(op, Check) else op.version if op.version is not None else version
            if wanted != version or (node is None and not isinstance(op, Check)):
                raise CoordinationConflictError.of(index, op, "has another version")
            if isinstance(op, Set):
                nodes[op.path] = Node(op.value, version + 1)
            elif isinstance(op, Delete):
                del nodes[op.path]
        self.nodes = nodes

    def close(self) -> None:
        pass
