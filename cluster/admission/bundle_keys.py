"""Who may sign policy: Ed25519 keys, the private ones in the hands of their owner, the public ones pinned in a ring.

A key's id is derived from the key, so that no file name and no bundle can say whose a key is. Several may be pinned at
once: pin the new one, sign with it, then take the old one out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cluster.admission.bundle_format import BundleArtefact, BundleRefusedError, Signature
from cluster.errors import ConfigurationError, ConflictError, NotFoundError
from cluster.identity.secret_file import write_secret

_MAX_KEY_BYTES: Final = 4096


class PolicyKey:
    """A private key that signs bundles."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def create(cls, path: Path) -> PolicyKey:
        """Make a new key in a file (0600) that only its owner reads; raises ConflictError when there is a file already."""
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(path, pem.decode())
        if path.read_bytes() != pem:
            raise ConflictError(f"There is a file {path} already.", hint="Name another one: no key is ever overwritten.")
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> PolicyKey:
        """Return the key of a file; raises NotFoundError, ConfigurationError when others may read it or it is no such key."""
        try:
            others = path.stat().st_mode & 0o077
            pem = _head(path)
        except OSError as e:
            raise NotFoundError(
                f"The key {path} can't be read: {e.strerror}.", hint="Make one: `sovereign policy keygen`."
            ) from None
        if others:
            raise ConfigurationError(f"The key {path} can be read by others than its owner.", hint=f"chmod 600 {path}")
        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"{path} holds no Ed25519 private key in PEM.")
        return cls(key)

    @property
    def public_pem(self) -> bytes:
        """The public key, to be pinned."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def key_id(self) -> str:
        """The id that its signatures carry."""
        return _key_id(self._key.public_key())

    def sign(self, artefact: BundleArtefact) -> BundleArtefact:
        """Return the artefact with this key's signature, in place of any other."""
        signature = self._key.sign(artefact.manifest.to_bytes()).hex()
        return BundleArtefact(artefact.manifest, artefact.files, Signature(self.key_id, signature))


class KeyRing:
    """The public keys that are pinned, by their ids."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey]) -> None:
        self._keys = keys

    @classmethod
    def load(cls, *folders: Path) -> KeyRing:
        """Return the keys of `folders` (`*.pem`); raises ConfigurationError for one that is no key or that others may write."""
        keys = {}
        for path in (path for folder in folders for path in sorted(folder.glob("*.pem"))):
            if (path.parent.stat().st_mode | path.stat().st_mode) & 0o022:
                raise ConfigurationError(f"The pinned key {path} can be changed by others than its owner.")
            key = _public(_head(path), str(path))
            keys[_key_id(key)] = key
        return cls(keys)

    @property
    def ids(self) -> list[str]:
        """The ids of the keys, in order."""
        return sorted(self._keys)

    def verify(self, artefact: BundleArtefact) -> str:
        """Return the id of the pinned key that signed the manifest; raises BundleRefusedError when none did."""
        signature = artefact.signature
        if signature is None:
            raise BundleRefusedError("The policy bundle is refused: it is not signed.", hint="Sign it: `sovereign policy sign`.")
        key = self._keys.get(signature.key_id)
        if key is None:
            raise BundleRefusedError(
                f"The policy bundle is refused: it is signed by the key {signature.key_id}, which is not pinned here.",
                hint="If you trust it, pin it: `sovereign policy trust KEY.pem`.",
            )
        try:
            key.verify(bytes.fromhex(signature.signature), artefact.manifest.to_bytes())
        except InvalidSignature:
            raise BundleRefusedError("The policy bundle is refused: its signature does not hold.") from None
        return signature.key_id


def pin(folder: Path, pem: bytes) -> str:
    """Pin a public key in `folder`, where it may be already, and return its id; raises ConfigurationError for no such key."""
    key = _public(pem, "What was given")
    name = _key_id(key)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_secret(folder / f"{name}.pem", key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())
    return name


def unpin(folder: Path, key_id: str) -> None:
    """Take a key out; what only it has signed is refused from then on. Raises NotFoundError when it is not pinned."""
    for path in folder.glob("*.pem"):
        if _key_id(_public(_head(path), str(path))) == key_id:
            path.unlink()
            return
    raise NotFoundError(f"The key {key_id[:40]!r} is not pinned.", hint="`sovereign policy list` shows which are.")


def _public(pem: bytes, name: str) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(f"{name} is no Ed25519 public key in PEM.")
    return key


def _key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_KEY_BYTES)
