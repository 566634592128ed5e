"""The artefact of a policy bundle: one tar file, which for its contents has exactly one form; any other byte is refused.

`manifest.json`, then `signature.json` when it is signed, then the policy's files in order of their names. The signature is
over the manifest's bytes, and the manifest holds the digest of each file. A header is never believed: it must be the one
that the writer makes for that name and size, so there are no links, no devices, no paths and no compression to be wary of.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from cluster.admission.strict_json import parse_strict_json
from cluster.errors import SovereignError

FORMAT: Final = 1
MAX_ARTEFACT_BYTES: Final = 8 << 20
MAX_FILE_BYTES: Final = 1 << 20
MAX_FILES: Final = 256
# The largest number of a bundle; 18 digits are what strict JSON takes.
MAX_NUMBER: Final = 10**15
_MANIFEST: Final = "manifest.json"
_SIGNATURE: Final = "signature.json"
_BLOCK: Final = tarfile.BLOCKSIZE
_END: Final = bytes(2 * _BLOCK)
_FILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_]{0,63}\.rego|data/[a-z0-9][a-z0-9_]{0,63}\.yaml")
_HEX_64: Final = re.compile(r"[0-9a-f]{64}")
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
_SIGNED: Final = re.compile(r"[0-9a-f]{128}")
_CREATED: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")


class BundleRefusedError(SovereignError):
    """A policy bundle is not taken; what decided before goes on to decide."""

    code = "policy_bundle_refused"
    status = 422


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is signed. A bundle replaces only one of a smaller number."""

    number: int
    revision: str
    # UTC, to the second, as RFC 3339 writes it.
    created: str
    # SHA-256 (hex) of each file by its name.
    files: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """Return the one form that is signed."""
        document = {
            "format": FORMAT,
            "number": self.number,
            "revision": self.revision,
            "created": self.created,
            "files": dict(self.files),
        }
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class Signature:
    """A detached Ed25519 signature (128 hex digits) over the manifest's bytes, and which key it is of."""

    key_id: str
    signature: str

    def to_bytes(self) -> bytes:
        """Return its one form."""
        document = {"algorithm": "Ed25519", "key_id": self.key_id, "signature": self.signature}
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


@dataclass(frozen=True, slots=True)
class BundleArtefact:
    """A bundle as it is written to one file. Its files are those of the manifest; whether its signature holds is not known."""

    manifest: Manifest
    files: Mapping[str, bytes]
    signature: Signature | None = None

    @classmethod
    def build(cls, files: Mapping[str, bytes], *, number: int, revision: str, created_us: int) -> BundleArtefact:
        """Return the unsigned bundle of `files`; raises BundleRefusedError for what no bundle may be."""
        created = datetime.fromtimestamp(created_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        # Read again as any other, so that nothing is built that would be refused.
        return cls.from_bytes(cls(Manifest(number, revision, created, digests), files).to_bytes())

    def to_bytes(self) -> bytes:
        """Return the artefact; equal contents give equal bytes."""
        entries = [(_MANIFEST, self.manifest.to_bytes())]
        if self.signature is not None:
            entries.append((_SIGNATURE, self.signature.to_bytes()))
        entries += sorted(self.files.items())
        parts = bytearray()
        for name, content in entries:
            parts += _header(name, len(content)) + content + bytes(-len(content) % _BLOCK)
        return bytes(parts) + _END

    @classmethod
    def from_bytes(cls, artefact: bytes) -> BundleArtefact:
        """Return what `to_bytes` wrote; raises BundleRefusedError for any other bytes."""
        if not artefact:
            raise _refused("it is empty")
        if len(artefact) > MAX_ARTEFACT_BYTES:
            raise _refused(f"it has {len(artefact)} bytes, and the most is {MAX_ARTEFACT_BYTES}")
        entries = dict(_entries(artefact))
        manifest = _manifest(entries.pop(_MANIFEST, b""))
        signed = entries.pop(_SIGNATURE, None)
        found = cls(manifest, entries, None if signed is None else _signature(signed))
        if odd := sorted(set(entries) ^ set(manifest.files)):
            raise _refused(f"its files are not those of its manifest: {odd[0]}")
        for name, content in entries.items():
            if hashlib.sha256(content).hexdigest() != manifest.files[name]:
                raise _refused(f"{name} is not the file that its manifest names")
        # One form only: order, padding and end too.
        if found.to_bytes() != artefact:
            raise _refused("it is not written in the one form that a bundle has")
        return found


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _entries(artefact: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    for _ in range(MAX_FILES + 3):
        header = artefact[at : at + _BLOCK]
        if header == _END[:_BLOCK]:
            return
        name, size = _name_and_size(header)
        if size > MAX_FILE_BYTES:
            raise _refused(f"{name} has {size} bytes, and the most is {MAX_FILE_BYTES}")
        content = artefact[at + _BLOCK : at + _BLOCK + size]
        if len(content) != size:
            raise _refused(f"it ends within {name}")
        yield name, content
        at += _BLOCK + size + -size % _BLOCK
    raise _refused(f"it has more than {MAX_FILES} files")


def _name_and_size(header: bytes) -> tuple[str, int]:
    try:
        name, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:135], 8)
    except ValueError:
        raise _refused("it is no tar file as bundles are") from None
    if name not in (_MANIFEST, _SIGNATURE) and not _FILE_NAME.fullmatch(name):
        raise _refused(f"it holds {name[:80]!a}, which is no name of a policy's file")
    if size < 0 or header != _header(name, size):
        raise _refused(f"the header of {name} is not one that a bundle has")
    return name, size


def _manifest(content: bytes) -> Manifest:
    document = _object(content, _MANIFEST, {"format", "number", "revision", "created", "files"})
    if document["format"] != FORMAT or type(document["format"]) is not int:
        raise _refused(f"its format is {str(document['format'])[:40]!a}, and this version reads {FORMAT}")
    number, files = document["number"], document["files"]
    if type(number) is not int or not 1 <= number <= MAX_NUMBER:
        raise _refused(f"its number is not 1 to {MAX_NUMBER}")
    for name, form in (("revision", _REVISION), ("created", _CREATED)):
        if not isinstance(document[name], str) or not form.fullmatch(document[name]):
            raise _refused(f"its {name} is not of the form that a manifest has")
    if not isinstance(files, dict) or not 1 <= len(files) <= MAX_FILES:
        raise _refused(f"its manifest names no files, or more than {MAX_FILES}")
    for name, digest in files.items():
        if not _FILE_NAME.fullmatch(name) or not isinstance(digest, str) or not _HEX_64.fullmatch(digest):
            raise _refused(f"its manifest has no SHA-256 for {name[:80]!a}, or that is no name of a policy's file")
    return Manifest(number, document["revision"], document["created"], files)


def _signature(content: bytes) -> Signature:
    document = _object(content, _SIGNATURE, {"algorithm", "key_id", "signature"})
    if document["algorithm"] != "Ed25519":
        raise _refused("it is not signed by Ed25519")
    for name, form in (("key_id", _KEY_ID), ("signature", _SIGNED)):
        if not isinstance(document[name], str) or not form.fullmatch(document[name]):
            raise _refused(f"the {name} of its signature is not of the form that a signature has")
    return Signature(document["key_id"], document["signature"])


def _object(content: bytes, name: str, keys: set[str]) -> dict[str, Any]:
    if not content:
        raise _refused(f"it has no {name}")
    try:
        document = parse_strict_json(content, max_bytes=MAX_FILE_BYTES)
    except SovereignError as e:
        raise _refused(f"its {name} can't be read: {e.detail}") from None
    if not isinstance(document, dict) or document.keys() != keys:
        raise _refused(f"its {name} has not exactly {', '.join(sorted(keys))}")
    return document


def _refused(why: str) -> BundleRefusedError:
    return BundleRefusedError(
        f"The policy bundle is refused: {why}.", hint="Build it anew with `sovereign policy build` and sign it."
    )
