"""From the bytes of an artefact to a policy that can decide: signature, files, form, rules, and a trial. All or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.admission.admission import require_sound
from cluster.admission.bundle import PolicyBundle, bundle_of
from cluster.admission.bundle_format import BundleArtefact, BundleRefusedError
from cluster.admission.bundle_keys import KeyRing
from cluster.admission.policy_engine import PolicyEngine, PolicyEngineError
from cluster.admission.policy_in_force import Policy
from cluster.admission.questions import ENTRYPOINTS
from cluster.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class OpenedBundle:
    """A bundle that may decide; it was tried by the engine of `tried`."""

    tried: Policy
    # The pinned key that signed it.
    key_id: str


class BundleOpener:
    """Opens bundles by the keys that are pinned at that moment, and starts the engines of those that are to decide."""

    def __init__(
        self,
        ring: Callable[[], KeyRing],
        try_engine: Callable[[PolicyBundle], PolicyEngine],
        elsewhere: Callable[[PolicyBundle], PolicyEngine] | None = None,
    ) -> None:
        """`try_engine` starts an engine of this process's own; `elsewhere` one that knows one bundle at a time, if it decides."""
        self._ring = ring
        self._try_engine = try_engine
        self._elsewhere = elsewhere

    @property
    def decides_elsewhere(self) -> bool:
        """Whether what decides is a server, which may lose its policy without this process."""
        return self._elsewhere is not None

    def open(self, artefact: bytes) -> OpenedBundle:
        """Return the bundle of `artefact`, tried; raises BundleRefusedError, with the reason, for all that is not good."""
        read = BundleArtefact.from_bytes(artefact)
        number = read.manifest.number
        try:
            key_id = self._ring().verify(read)
            bundle = bundle_of(read.files, f"bundle {number}")
            _require_revision(read, bundle)
            engine = self._try_engine(bundle)
            require_sound(engine, ENTRYPOINTS.values())
        except ConfigurationError as e:
            raise BundleRefusedError(f"The policy bundle is refused: {e.detail}", hint=e.hint, errors=e.errors) from None
        except PolicyEngineError as e:
            raise BundleRefusedError(f"The policy bundle is refused: on trial, {e.detail}") from None
        return OpenedBundle(Policy(bundle, engine, number), key_id)

    def start(self, policy: Policy) -> Policy:
        """Return the policy with the engine that is to decide by it, started; raises ConfigurationError when it can't be."""
        return policy if self._elsewhere is None else replace(policy, engine=self._elsewhere(policy.bundle))


def _require_revision(read: BundleArtefact, bundle: PolicyBundle) -> None:
    if bundle.revision != read.manifest.revision:
        raise BundleRefusedError(
            f"The policy bundle is refused: its manifest says revision {read.manifest.revision}, "
            f"and its data say {bundle.revision}."
        )
