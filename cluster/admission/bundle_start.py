"""With which policy a governor begins: the one that was accepted last, or the first one that the operator offers.

Nothing decides unsigned: the policy folder of one box is signed by that box's own key when it is started, and by nothing
else later. There is no policy to fall back to: without a bundle that opens, a governor does not begin.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from cluster.admission.bundle import bundle_of, read_policies
from cluster.admission.bundle_format import MAX_ARTEFACT_BYTES, BundleArtefact, BundleRefusedError
from cluster.admission.bundle_keys import KeyRing, PolicyKey, pin
from cluster.admission.bundle_opener import BundleOpener
from cluster.admission.bundle_shelf import BundleShelf, accepted_bundle, write_whole
from cluster.admission.bundles import Bundles
from cluster.admission.policy_in_force import Policy
from cluster.clock import Clock
from cluster.coordination.coordination import Coordination
from cluster.errors import ConfigurationError, ConflictError, NotFoundError, SovereignError

log = logging.getLogger(__name__)
# Who brings what is offered at start; such a bundle may be replaced by a later start.
STARTER: Final = "start"


def sign_folder(
    folder: Path, out: Path, *, key_path: Path, ring_dir: Path, shelf: BundleShelf, coordination: Coordination, clock: Clock
) -> None:
    """Write the policies of `folder` to `out` as the next bundle, signed by this box's own key, which is made and pinned.

    Nothing is written when they are in force already, or when an operator pushed a bundle: that one stays. Raises
    ConfigurationError for policies that can't be taken.
    """
    files = read_policies(folder)
    bundle = bundle_of(files, str(folder))
    try:
        key = PolicyKey.load(key_path)
    except NotFoundError:
        key = PolicyKey.create(key_path)
    pin(ring_dir, key.public_pem)
    before = accepted_bundle(coordination)
    if before is not None and before.actor != STARTER:
        return
    if before is not None and before.digest == bundle.digest:
        try:
            KeyRing.load(ring_dir).verify(BundleArtefact.from_bytes(shelf.read(before)))
            return
        except SovereignError as e:
            log.warning("the policy folder is signed anew: %s", e.detail)
    number = before.number + 1 if before else 1
    artefact = BundleArtefact.build(files, number=number, revision=bundle.revision, created_us=clock.now_us())
    write_whole(out, key.sign(artefact).to_bytes())


def offered_bundle(path: Path) -> bytes | None:
    """Return what the operator offers at start; None without such a file."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_ARTEFACT_BYTES + 1)
    except OSError:
        return None


def first_policy(coordination: Coordination, opener: BundleOpener, shelf: BundleShelf, offered: bytes | None) -> Policy:
    """Return the policy to begin with; raises ConfigurationError when there is none that may decide."""
    accepted = accepted_bundle(coordination)
    why = "none was ever accepted here, and none is offered"
    if accepted is not None:
        try:
            return opener.start(opener.open(shelf.read(accepted)).tried)
        except SovereignError as e:
            why = f"number {accepted.number}, accepted last, can't be used: {e.detail}"
    if offered is not None:
        try:
            tried = opener.open(offered).tried
        except BundleRefusedError as e:
            why = e.detail if accepted is None else why
        else:
            if accepted is None or tried.number > accepted.number:
                return opener.start(tried)
    raise ConfigurationError(
        f"There is no policy bundle that may decide, so nothing is allowed: {why}",
        hint="Offer one that is signed by a pinned key and has a greater number, by SOVEREIGN_POLICY_BUNDLE.",
    )


def accept_offered(coordination: Coordination, bundles: Bundles, offered: bytes | None) -> None:
    """Put in force what is offered, if it is newer; what is refused is a fact, and the last good one goes on.

    Raises BundleRefusedError when there is no last good one.
    """
    accepted = accepted_bundle(coordination)
    if offered is None:
        return
    if accepted is not None:
        try:
            if BundleArtefact.from_bytes(offered).manifest.number <= accepted.number:
                return
        except BundleRefusedError:
            pass  # it is refused once more, on the record
    try:
        bundles.push(offered, STARTER)
    except (BundleRefusedError, ConflictError) as e:
        if accepted is None:
            raise
        log.warning("policy %d goes on: %s", accepted.number, e.detail)
