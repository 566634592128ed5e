"""From the bytes of an artefact to a policy that can decide: signature, files, form, rules, and a trial. All or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.admission.admission import require_sound
from cluster.admission.bundle import PolicyBundle, bundle_of
from cluster.admission.bundle_format import BundleArtefact, BundleRefusedError
from cluster.admission.bundle_keys import KeyRing
from cluster.admission.policy_engine import PolicyEngine, PolicyEngineError
from cluster.admission.policy_in_force import Policy
from cluster.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """A bundle that may decide."""

    policy: Policy
    # The pinned key that signed it.
    key_id: str


class BundleOpener:
    """Opens bundles by the keys that are pinned at that moment."""

    def __init__(self, ring: Callable[[], KeyRing], start_engine: Callable[[PolicyBundle], PolicyEngine]) -> None:
        self._ring = ring
        self._start_engine = start_engine

    def open(self, artefact: bytes) -> OpenedBundle:
        """Return the policy of `artefact`; raises BundleRefusedError, which says why, for all that is not whole and signed."""
        read = BundleArtefact.from_bytes(artefact)
        key_id = self._ring().verify(read)
        number = read.manifest.number
        try:
            bundle = bundle_of(read.files, f"bundle {number}")
            if bundle.revision != read.manifest.revision:
                raise BundleRefusedError(
                    f"The policy bundle is refused: its manifest says revision {read.manifest.revision}, "
                    f"and its data say {bundle.revision}."
                )
            engine = self._start_engine(bundle)
            require_sound(engine)
        except ConfigurationError as e:
            raise BundleRefusedError(f"The policy bundle is refused: {e.detail}", hint=e.hint, errors=e.errors) from None
        except PolicyEngineError as e:
            raise BundleRefusedError(f"The policy bundle is refused: on trial, {e.detail}") from None
        return OpenedBundle(Policy(bundle, engine, number), key_id)
