"""The name of a journal: who writes, and in which life."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.ids import Identifier

_EPOCH_FOLDER = re.compile(r"e(0|[1-9][0-9]{0,9})")
MAX_EPOCH = (1 << 31) - 1
MAX_WRITER_ID = 200


@dataclass(frozen=True, slots=True, order=True)
class JournalId:
    """`writer_id` is identifiers joined by dots ("agent.acme.planner-001"); `epoch` counts the lives of that writer."""

    writer_id: str
    epoch: int

    def __post_init__(self) -> None:
        try:
            parts = [Identifier(p) for p in self.writer_id.split(".")]
        except ValueError as e:
            raise InvalidRequestError(
                f"{self.writer_id[:80]!r} cannot name a journal.", errors=[FieldError("writer_id", str(e))]
            ) from None
        if len(parts) > 6 or len(self.writer_id) > MAX_WRITER_ID:
            raise InvalidRequestError(
                f"The writer id {self.writer_id[:80]!r} is longer than {MAX_WRITER_ID} characters or 6 parts."
            )
        if not 0 <= self.epoch <= MAX_EPOCH:
            raise InvalidRequestError(f"Epoch {self.epoch} of {self.writer_id} is outside 0 to {MAX_EPOCH}.")

    def __str__(self) -> str:
        return f"{self.writer_id}/e{self.epoch}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the id that `str` printed; raises InvalidRequestError."""
        writer_id, _, folder = text.rpartition("/")
        match = _EPOCH_FOLDER.fullmatch(folder)
        if not match:
            raise InvalidRequestError(f"{text[:80]!r} is not of the form <writer id>/e<epoch>.")
        return cls(writer_id, int(match[1]))

    def folder(self, directory: Path) -> Path:
        """Return this journal's folder below the node's journal directory."""
        return directory / self.writer_id / f"e{self.epoch}"


def list_journals(directory: Path) -> list[JournalId]:
    """Return every journal below `directory`, in order of writer and epoch; files that are none are passed over."""
    found: list[JournalId] = []
    if not directory.is_dir():
        return found
    for writer in directory.iterdir():
        if writer.name.startswith(".") or not writer.is_dir():
            continue
        for epoch in writer.iterdir():
            # A journal that is being created stands under a name with a leading dot until it holds its lock.
            if _EPOCH_FOLDER.fullmatch(epoch.name):
                with contextlib.suppress(InvalidRequestError):
                    found.append(JournalId.parse(f"{writer.name}/{epoch.name}"))
    return sorted(found)


def next_epoch(directory: Path, writer_id: str) -> int:
    """Return the first epoch above all that `writer_id` has below `directory` (1 when it has none)."""
    folder = JournalId(writer_id, 0).folder(directory).parent
    names = [m for p in folder.iterdir() if (m := _EPOCH_FOLDER.fullmatch(p.name))] if folder.is_dir() else []
    return max((int(m[1]) for m in names), default=0) + 1
