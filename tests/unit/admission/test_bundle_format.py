"""The artefact of a policy bundle, which has one form, and the keys that sign it (threat 29)."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
from pathlib import Path

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cluster.admission.bundle_format import MAX_ARTEFACT_BYTES, MAX_FILES, BundleArtefact, BundleRefusedError, Manifest
from cluster.admission.bundle_keys import KeyRing, PolicyKey, pin, unpin
from cluster.errors import ConfigurationError, ConflictError, NotFoundError
from tests.sizes import soak

GOLDEN = Path(__file__).parent / "golden" / "bundle-v1.tar"
FILES = {"admission.rego": b"package sovereign.admission\n", "data/manifest.yaml": b'revision: "1"\n'}
KEY = PolicyKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
# 2026-09-21T13:33:20Z
CREATED_US = 1_790_000_000_000_000


def unsigned(number: int = 7) -> BundleArtefact:
    return BundleArtefact.build(FILES, number=number, revision="1", created_us=CREATED_US)


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    pin(tmp_path / "ring", KEY.public_pem)
    return KeyRing.load(tmp_path / "ring")


def test_the_format_is_the_golden_file(ring: KeyRing) -> None:
    """Bundles that were signed years ago are read, and the same contents give the same bytes on any machine."""
    golden = GOLDEN.read_bytes()
    assert KEY.sign(unsigned()).to_bytes() == golden
    read = BundleArtefact.from_bytes(golden)
    assert ring.verify(read) == KEY.key_id == "56475aa75463474c"
    assert read.files == FILES
    assert (read.manifest.number, read.manifest.revision, read.manifest.created) == (7, "1", "2026-09-21T14:13:20Z")


def test_any_tar_reads_it() -> None:
    """An operator can look into a bundle with the tools that there are."""
    with tarfile.open(GOLDEN, "r:") as tar:
        assert tar.getnames() == ["manifest.json", "signature.json", *FILES]
        assert all((entry.mtime, entry.uid, entry.uname) == (0, 0, "") for entry in tar)


def test_threat_29_a_flip_of_any_byte_is_refused(ring: KeyRing) -> None:
    """No byte of an artefact is without meaning: headers, padding, end and signature too."""
    golden, rng = bytearray(GOLDEN.read_bytes()), random.Random(29)
    for place in range(len(golden)):
        for flip in (1 << bit for bit in rng.sample(range(8), soak(1, 8))):
            golden[place] ^= flip
            with pytest.raises(BundleRefusedError):
                ring.verify(BundleArtefact.from_bytes(bytes(golden)))
            golden[place] ^= flip


def test_threat_29_what_is_cut_or_added_to_is_refused() -> None:
    """A bundle ends where it ends."""
    golden = GOLDEN.read_bytes()
    for length in range(0, len(golden), 64):
        with pytest.raises(BundleRefusedError):
            BundleArtefact.from_bytes(golden[:length])
    for more in (b"\0", bytes(512), golden):
        with pytest.raises(BundleRefusedError, match="one form"):
            BundleArtefact.from_bytes(golden + more)


def tar_of(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in entries:
            entry.size = len(content) if entry.isreg() else 0
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


HOSTILE = {
    "compressed": gzip.compress(GOLDEN.read_bytes()),
    "climbs": tar_of((entry("../admission.rego"), b"x")),
    "absolute": tar_of((entry("/etc/cron.d/x"), b"x")),
    "in another folder": tar_of((entry("data/more/x.yaml"), b"x")),
    "links": tar_of((entry("admission.rego", tarfile.SYMTYPE, "/etc/passwd"), b"")),
    "a folder": tar_of((entry("data/x.yaml", tarfile.DIRTYPE), b"")),
    "a device": tar_of((entry("x.rego", tarfile.CHRTYPE), b"")),
    "a long name": tar_of((entry("x" * 300 + ".rego"), b"x")),
    "another mode": tar_of((entry("x.rego"), b"x")).replace(b"0000644", b"0004755", 1),
    "no tar": b"PK\x03\x04" + bytes(2000),
    "zeros": bytes(10240),
    "too large": bytes(MAX_ARTEFACT_BYTES + 1),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_threat_29_what_is_no_bundle_is_refused(what: str) -> None:
    """Nothing is unpacked to a path, followed or decompressed."""
    with pytest.raises(BundleRefusedError):
        BundleArtefact.from_bytes(HOSTILE[what])


def test_sizes_and_counts_are_bounded() -> None:
    """A bundle can't fill memory: too large a file, too many of them, are refused, when built too."""
    for files in ({"a.rego": bytes((1 << 20) + 1)}, {f"a{n}.rego": b"" for n in range(MAX_FILES + 1)}, {}):
        with pytest.raises(BundleRefusedError):
            BundleArtefact.build(files, number=1, revision="1", created_us=0)
    # A header alone may claim what it likes.
    claim = tarfile.TarInfo("a.rego")
    claim.size = 1 << 33
    with pytest.raises(BundleRefusedError):
        BundleArtefact.from_bytes(claim.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


def rewritten(change: dict[str, object]) -> bytes:
    """The golden bundle's files under another manifest, which is not signed."""
    document = orjson.loads(unsigned().manifest.to_bytes()) | change
    body = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)

    class Given(Manifest):
        def to_bytes(self) -> bytes:
            return body

    return BundleArtefact(Given(7, "1", "", {}), FILES).to_bytes()


DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": True},
        {"number": 0},
        {"number": -1},
        {"number": "7"},
        {"number": True},
        {"number": 10**16},
        {"revision": ""},
        {"revision": "a\nb"},
        {"created": "yesterday"},
        {"more": 1},
        {"files": []},
        {"files": {}},
        {"files": DIGESTS | {"more.rego": "0" * 64}},
        {"files": {"admission.rego": DIGESTS["admission.rego"]}},
        {"files": DIGESTS | {"admission.rego": "0" * 64}},
        {"files": DIGESTS | {"admission.rego": 7}},
    ],
)
def test_a_manifest_that_is_not_whole_is_refused(change: dict[str, object]) -> None:
    """Format, number, revision, date and a digest for each file, and nothing else."""
    assert BundleArtefact.from_bytes(rewritten({})).manifest == unsigned().manifest
    with pytest.raises(BundleRefusedError):
        BundleArtefact.from_bytes(rewritten(change))


def test_threat_29_only_a_pinned_key_signs(tmp_path: Path, ring: KeyRing) -> None:
    """Unsigned, signed by a stranger, by a stranger under a pinned key's id, or with another bundle's signature: refused."""
    stranger = PolicyKey(Ed25519PrivateKey.generate())
    forged = stranger.sign(unsigned())
    assert forged.signature is not None
    renamed = BundleArtefact(forged.manifest, forged.files, type(forged.signature)(KEY.key_id, forged.signature.signature))
    moved = BundleArtefact(unsigned(8).manifest, FILES, KEY.sign(unsigned()).signature)
    for artefact, why in ((unsigned(), "not signed"), (forged, "not pinned"), (renamed, "not hold"), (moved, "not hold")):
        with pytest.raises(BundleRefusedError, match=why):
            ring.verify(BundleArtefact.from_bytes(artefact.to_bytes()))


def test_keys_rotate(tmp_path: Path) -> None:
    """Two keys hold while both are pinned; one that is taken out signs nothing any more."""
    old, new = (PolicyKey(Ed25519PrivateKey.generate()) for _ in range(2))
    pin(tmp_path, old.public_pem)
    assert pin(tmp_path, new.public_pem) == pin(tmp_path, new.public_pem) == new.key_id
    for key in (old, new):
        assert KeyRing.load(tmp_path).verify(key.sign(unsigned())) == key.key_id
    unpin(tmp_path, old.key_id)
    assert KeyRing.load(tmp_path).ids == [new.key_id]
    with pytest.raises(BundleRefusedError, match="not pinned"):
        KeyRing.load(tmp_path).verify(old.sign(unsigned()))
    with pytest.raises(NotFoundError):
        unpin(tmp_path, old.key_id)


def test_a_private_key_is_its_owners_alone(tmp_path: Path) -> None:
    """It is made readable by its owner alone, never written over, and not used when others can read it."""
    path = tmp_path / "deep" / "policy.key"
    key = PolicyKey.create(path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert PolicyKey.load(path).key_id == key.key_id
    with pytest.raises(ConflictError):
        PolicyKey.create(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        PolicyKey.load(path)
    path.chmod(0o600)
    path.write_bytes(key.public_pem)
    with pytest.raises(ConfigurationError, match="no Ed25519 private key"):
        PolicyKey.load(path)
    with pytest.raises(NotFoundError, match="keygen"):
        PolicyKey.load(tmp_path / "none")


def test_a_ring_that_others_can_write_is_no_ring(tmp_path: Path) -> None:
    """Who can pin a key can decide: a file or folder that others may write pins nothing, and says so."""
    pin(tmp_path, KEY.public_pem)
    path = next(tmp_path.glob("*.pem"))
    for place in (path, tmp_path):
        mode = place.stat().st_mode
        place.chmod(mode | 0o020)
        with pytest.raises(ConfigurationError, match="changed by others"):
            KeyRing.load(tmp_path)
        place.chmod(mode)
    path.write_text("no key")
    with pytest.raises(ConfigurationError, match="no Ed25519 public key"):
        KeyRing.load(tmp_path)
