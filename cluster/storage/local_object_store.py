"""Objects as files below one folder of a local (or properly mounted) file system."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import NotFoundError, StorageError
from cluster.storage.object_store import ObjectInfo, PutOutcome, check_key


class LocalObjectStore:
    """The embedded object store. A hard link is the create-only step, so the file system must know hard links."""

    def __init__(self, root: Path) -> None:
        """Keep objects below `root`, which is made when it is missing."""
        self.root = root

    def put_if_absent(self, key: str, data: bytes, *, sha256: str) -> PutOutcome:
        """Create the file; see ObjectStore."""
        path = self.root / check_key(key)
        try:
            self._make_folder(path.parent)
            return self._create(path, data)
        except OSError as e:
            raise StorageError(f"{path} could not be written: {e}.", hint="Nothing was stored; it is tried again.") from e

    def get(self, key: str) -> bytes:
        """Return the file's bytes; see ObjectStore."""
        path = self.root / check_key(key)
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFoundError(f"There is no object {key} in {self.describe()}.") from None
        except OSError as e:
            raise StorageError(f"{path} could not be read: {e}.") from e

    def head(self, key: str) -> ObjectInfo | None:
        """Return the file's size and digest; see ObjectStore."""
        try:
            data = self.get(key)
        except NotFoundError:
            return None
        return ObjectInfo(key, len(data), hashlib.sha256(data).hexdigest())

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """Yield the files in order of key; see ObjectStore."""
        try:
            yield from self._walk(self.root, "", prefix, after)
        except OSError as e:
            raise StorageError(f"{self.describe()} could not be listed: {e}.") from e

    def describe(self) -> str:
        """Return the folder as a URL."""
        return self.root.absolute().as_uri()

    def _create(self, path: Path, data: bytes) -> PutOutcome:
        # Readers pass over names with a leading dot; one that a kill leaves behind is only dead weight.
        making = path.with_name(f".{uuid.uuid4().hex}.tmp")
        fd = os.open(making, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            try:
                with open(fd, "wb", buffering=0, closefd=False) as f:
                    rest = memoryview(data)
                    while rest:
                        rest = rest[f.write(rest) :]
                # Before the link: a name must never stand for bytes that a power cut could take back.
                os.fsync(fd)
            finally:
                os.close(fd)
            try:
                os.link(making, path)
                outcome = PutOutcome.CREATED
            except FileExistsError:
                outcome = PutOutcome.EXISTS
        finally:
            making.unlink()
        _sync_folder(path.parent)
        return outcome

    def _make_folder(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(new.parent)

    def _walk(self, folder: Path, at: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
        try:
            # A folder sorts as its name with "/": that is where its keys stand among the others.
            entries = sorted((e.name + "/" if e.is_dir() else e.name, e) for e in os.scandir(folder))
        except FileNotFoundError:
            return
        for name, entry in entries:
            key = at + name
            if name.startswith("."):
                continue
            if name.endswith("/"):
                if (key.startswith(prefix) or prefix.startswith(key)) and (key > after or after.startswith(key)):
                    yield from self._walk(Path(entry.path), key, prefix, after)
            elif key.startswith(prefix) and key > after:
                yield ObjectInfo(key, entry.stat().st_size)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
