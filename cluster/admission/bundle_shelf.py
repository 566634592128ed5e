"""Bundles that were accepted, and their artefacts: what is in force after a restart, and what one can go back to.

/policy/accepted           the bundle in force; every admission's transaction holds only while it is
/policy/bundles/<number>   each bundle that was ever accepted

The artefact is a file of the shelf, on disk before the transaction that accepts it. The store says which file it is, by its
digest: an older or changed file in its place is refused, and not decided by.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from cluster.admission.bundle_format import MAX_ARTEFACT_BYTES
from cluster.coordination.coordination import Coordination, Create, Op, Set
from cluster.errors import ConfigurationError, NotFoundError, StorageError

ACCEPTED: Final = "/policy/accepted"
_FOLDER: Final = "/policy/bundles"
# Artefacts that one can go back to; what was accepted is known of all.
KEPT_FILES: Final = 100


@dataclass(frozen=True, slots=True)
class AcceptedBundle:
    """A bundle that was accepted."""

    number: int
    revision: str
    # Of its rules and data: what decisions carry.
    digest: str
    # SHA-256 (hex) of its file.
    artefact: str
    key_id: str
    # Who brought it; START for the policy folder of this box, which a later start may replace.
    actor: str
    accepted_us: int

    def to_bytes(self) -> bytes:
        """Return it as it is stored."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_bytes(cls, value: bytes) -> AcceptedBundle:
        """Return what `to_bytes` wrote."""
        return cls(**orjson.loads(value))


def accepted_bundle(coordination: Coordination) -> AcceptedBundle | None:
    """Return the bundle in force; None before the first."""
    node = coordination.get(ACCEPTED)
    return AcceptedBundle.from_bytes(node.value) if node else None


def accepted_bundles(coordination: Coordination) -> Iterator[AcceptedBundle]:
    """Yield every bundle that was accepted, in order of their numbers."""
    after = ""
    while names := coordination.children(_FOLDER, after=after):
        for name in names:
            if (node := coordination.get(f"{_FOLDER}/{name}")) is not None:
                yield AcceptedBundle.from_bytes(node.value)
        after = names[-1]


def ops_to_accept(coordination: Coordination, bundle: AcceptedBundle) -> list[Op]:
    """Return what puts `bundle` in force, unless another one came first."""
    node, value = coordination.get(ACCEPTED), bundle.to_bytes()
    return [
        Create(ACCEPTED, value) if node is None else Set(ACCEPTED, value, node.version),
        Create(f"{_FOLDER}/{bundle.number:016d}", value),
    ]


class BundleShelf:
    """The folder of the artefacts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, number: int, artefact: bytes) -> str:
        """Put an artefact on disk and return its digest; raises StorageError."""
        digest = hashlib.sha256(artefact).hexdigest()
        path = self.path(number, digest)
        try:
            write_whole(path, artefact)
            for old in sorted(self._folder.glob("*.tar"))[:-KEPT_FILES]:
                old.unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"The policy bundle can't be kept at {path}: {e.strerror}.") from None
        return digest

    def read(self, bundle: AcceptedBundle) -> bytes:
        """Return the artefact of an accepted bundle.

        Raises NotFoundError when it is not there, ConfigurationError when it is not the one that was accepted.
        """
        path = self.path(bundle.number, bundle.artefact)
        try:
            with path.open("rb") as file:
                artefact = file.read(MAX_ARTEFACT_BYTES + 1)
        except OSError as e:
            raise NotFoundError(f"The policy bundle {bundle.number} can't be read from {path}: {e.strerror}.") from None
        if hashlib.sha256(artefact).hexdigest() != bundle.artefact:
            raise ConfigurationError(f"The policy bundle at {path} is not the one that was accepted as number {bundle.number}.")
        return artefact

    def path(self, number: int, digest: str) -> Path:
        """Return where an artefact is kept."""
        return self._folder / f"{number:016d}-{digest[:16]}.tar"


def write_whole(path: Path, content: bytes) -> None:
    """Put a file (0600) on disk in one step, in place of any other; raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
