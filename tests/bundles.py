"""Policy bundles for the tests: signed by a key that is pinned in a governor's home, with whatever is to be wrong of them."""

from __future__ import annotations

from pathlib import Path

import yaml

from cluster.admission.bundle import read_policies
from cluster.admission.bundle_format import BundleArtefact
from cluster.admission.bundle_keys import PolicyKey, pin


class Signer:
    """A key, pinned in `ring` unless that is None."""

    def __init__(self, folder: Path, ring: Path | None) -> None:
        self.key = PolicyKey.create(folder / f"{len(list(folder.glob('*')))}.key")
        if ring is not None:
            pin(ring, self.key.public_pem)

    def bundle(self, folder: Path, number: int, *, revision: str = "", replaced: dict[str, bytes] | None = None) -> bytes:
        """Return the signed bundle of the policies in `folder`, with some files replaced."""
        files = read_policies(folder) | (replaced or {})
        return self.signed(files, number, revision)

    def signed(self, files: dict[str, bytes], number: int, revision: str = "") -> bytes:
        """Return the signed bundle of these files."""
        revision = revision or revision_of(files)
        built = BundleArtefact.build(files, number=number, revision=revision, created_us=1_790_000_000_000_000)
        return self.key.sign(built).to_bytes()


def revision_of(files: dict[str, bytes]) -> str:
    """Return the revision that the files' own manifest says."""
    document = yaml.safe_load(files.get("data/manifest.yaml", b"revision: none"))
    return str(document["revision"])
