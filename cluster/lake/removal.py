"""Taking a journal off the disk, so that no later life can mistake what is left for something new."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from cluster.journal.journal_id import JournalId, list_journals
from cluster.journal.segment import list_segments, segment_name


def remove_journals(directory: Path, gone: Iterable[JournalId]) -> None:
    """Remove journals whose facts are in the lake; a writer's last epoch stays as an empty folder."""
    journals = list_journals(directory)
    for journal in gone:
        folder = journal.folder(directory)
        if any(j.writer_id == journal.writer_id and j.epoch > journal.epoch for j in journals):
            hidden = folder.with_name(f".{folder.name}.removed")
            with contextlib.suppress(FileNotFoundError):
                folder.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
        else:
            # Were it written again, its facts would be passed over.
            for first in list_segments(folder):
                (folder / segment_name(first)).unlink(missing_ok=True)
