"""The life that plans an earlier batch anew, cut short at each of its steps: the result is always the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.journal.journal_id import JournalId, list_journals
from cluster.journal.reader import JournalReader
from cluster.journal.writer import JournalWriter
from cluster.storage.local_object_store import LocalObjectStore
from tests.lake_batch import (
    A,
    B,
    check_only_a_is_broken,
    refusals,
    remove,
    sealed_not_stored,
    usage_of,
)
from tests.lake_node import Node


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


class DiedError(Exception):
    """Stands for the death of the process at this place."""


@contextmanager
def dies_at(number: int) -> Iterator[None]:
    """Raise before or after a write of a journal, a sync or a PUT: at the `number`-th of these places from here on."""
    left = number

    def tick(name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise DiedError(name)

    def deadly(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def method(*args: Any, **kwargs: Any) -> Any:
            tick(f"before {name}")
            result = real(*args, **kwargs)
            tick(f"after {name}")
            return result

        return method

    with pytest.MonkeyPatch.context() as patch:
        for cls, names in ((JournalWriter, ("append", "append_many", "sync")), (LocalObjectStore, ("put_if_absent",))):
            for name in names:
                patch.setattr(cls, name, deadly(getattr(cls, name), name))
        yield


@pytest.mark.parametrize("stored", [False, True], ids=["not stored", "stored before"])
def test_wherever_the_new_plan_is_cut_short_the_result_is_the_same(tmp_path: Path, stored: bool) -> None:
    """Control: BROKEN and the new intent before its PUT. The life that finds the break dies at each of its steps in turn."""
    before = Node(tmp_path / "before")
    sealed_not_stored(before)
    if stored:
        before.store.lose_answers = True
        with before.shipper() as shipper:
            shipper.step()
    remove(before)
    number, alive = 0, False
    while not alive:
        number += 1
        shutil.copytree(tmp_path / "before", tmp_path / str(number))
        node = Node(tmp_path / str(number))
        # So long a wait that its thread for syncs takes no step of its own meanwhile.
        shipper = node.shipper(sync_ms=60_000)
        with dies_at(number):
            try:
                shipper.step(seal=False)
                alive = True
            except DiedError:
                pass
        shipper.close()
        with node.shipper() as shipper:
            assert shipper.step().conflicts == 0
        assert usage_of(node) == {A.writer_id: 2, B.writer_id: 2} if stored else {B.writer_id: 2}
        assert refusals(node) == {"b": 5}
        check_only_a_is_broken(node)
    assert number > 12, "the new intent, its sync, two PUTs and `shipped`, before and after each"


def test_a_new_plan_of_which_only_a_first_part_was_written_is_made_again(node: Node) -> None:
    """Control: Recovered.told and the order in Outbox._replan. A torn write leaves the alarm, or alarm and mark, alone."""
    sealed_not_stored(node)
    remove(node)
    node.store.away = True
    with node.shipper() as shipper:
        shipper.step()
    own = JournalId("shipper.n1", 2)
    reader, ends = JournalReader(node.journals, own), []
    while reader.read(1):
        ends.append(reader.position.offset)
    # The checkpoint, the alarm, the mark, the new intent.
    assert len(ends) == 4
    path = next(own.folder(node.journals).glob("*.seg"))
    whole = path.read_bytes()
    node.store.away = False
    for cut in ends:
        path.write_bytes(whole[:cut])
        for old in list_journals(node.journals):
            if old.writer_id == "shipper.n2":
                shutil.rmtree(old.folder(node.journals))
        shutil.rmtree(node.store.root, ignore_errors=True)
        with node.shipper("n2") as shipper:
            shipper.step()
        assert (refusals(node), usage_of(node)) == ({"b": 5}, {B.writer_id: 2})
        check_only_a_is_broken(node)
