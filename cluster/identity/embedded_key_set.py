"""The embedded issuer's keys: one file (0600) below `secrets/`, with the key that signs and those that it took over from."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from cluster.clock import Clock
from cluster.errors import IntegrityError
from cluster.identity.access_tokens import MAX_LIFE_S
from cluster.identity.key_set import SIGNING_ALGORITHM, TrustedIssuer, VerificationKey, read_key_set

# How long a key that signs no more is still taken: the life of the last token that it can have signed, and a minute.
KEPT_S: Final = MAX_LIFE_S + 60


@dataclass(frozen=True, slots=True)
class _Ring:
    """What the file holds, and which file that was."""

    signing: ECKey
    # Every public key, as a JSON Web Key, with the second until which it holds; 0 for the one that signs.
    public: tuple[tuple[dict[str, Any], int], ...]
    found: dict[str, VerificationKey]
    until: dict[str, int]
    stamp: tuple[int, int, int]


class EmbeddedKeySet:
    """Keys of this cluster. Every process of it reads the same file, and again when another has rotated it."""

    def __init__(self, path: Path, issuer: TrustedIssuer, clock: Clock) -> None:
        """Read the keys at `path`, or make the first; raises IntegrityError for a file that is not one of ours."""
        self._path = path
        self._issuer = issuer
        self._clock = clock
        self._lock = Lock()
        if not path.exists():
            self._change(first=True)
        self._ring = self._read()

    def find(self, key_id: str) -> VerificationKey | None:
        """Return the key of that id that may have signed a token that still lives, or None."""
        # The file, always: one that only knows an older file would take a rotated key for ever.
        ring = self._fresh()
        key = ring.found.get(key_id)
        until_s = ring.until.get(key_id, 0)
        if key is None or (until_s and self._clock.now_us() // 1_000_000 >= until_s):
            return None
        return key

    def signing_key(self) -> ECKey:
        """Return the key that signs now."""
        return self._fresh().signing

    def public_jwks(self) -> dict[str, Any]:
        """Return the JSON Web Key Set that anyone may have."""
        now_s = self._clock.now_us() // 1_000_000
        return {"keys": [jwk for jwk, until_s in self._fresh().public if not until_s or now_s < until_s]}

    def rotate(self) -> str:
        """Make a new signing key and return its id; the old one's private half is gone, its public half stays for a while."""
        self._change(first=False)
        return str(self.signing_key().kid)

    def _change(self, *, first: bool) -> None:
        with self._alone():
            if first and self._path.exists():
                return  # another process was quicker
            now_s = self._clock.now_us() // 1_000_000
            kept = [] if first else [(jwk, until or now_s + KEPT_S) for jwk, until in self._read().public]
            key = ECKey.generate_key("P-256", {"alg": SIGNING_ALGORITHM, "use": "sig"}, auto_kid=True)
            document = {
                "signing": key.as_dict(private=True),
                "retired": [{"until_s": until, "key": jwk} for jwk, until in kept if now_s < until],
            }
            self._write(json.dumps(document))

    def _fresh(self) -> _Ring:
        """Return the keys as the file has them now."""
        with self._lock:
            if self._stamp() != self._ring.stamp:
                self._ring = self._read()
            return self._ring

    def _read(self) -> _Ring:
        stamp = self._stamp()
        try:
            document = json.loads(self._path.read_text())
            signing = _private(document["signing"])
            public = [(dict(signing.as_dict(private=False)), 0)]
            public += [(dict(each["key"]), int(each["until_s"])) for each in document["retired"]]
            found = read_key_set({"keys": [jwk for jwk, _ in public]}, self._issuer, {SIGNING_ALGORITHM})
        except (OSError, JoseError, KeyError, TypeError, ValueError) as e:
            # Not the text of the fault: it may quote what it could not read.
            raise IntegrityError(
                f"The keys for access tokens in {self._path} can't be read: {type(e).__name__}.",
                hint="Put the file back from your copy. Without one, remove it: a new key is made, and tokens end early.",
            ) from None
        return _Ring(signing, tuple(public), found, {str(jwk["kid"]): until for jwk, until in public}, stamp)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return 0, 0, 0
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _write(self, text: str) -> None:
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of all processes that change the file."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _private(jwk: dict[str, Any]) -> ECKey:
    if "d" not in jwk:
        raise ValueError("it is a public key")
    return ECKey.import_key(cast("Any", jwk))
