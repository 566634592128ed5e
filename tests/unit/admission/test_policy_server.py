"""A policy engine that is a server: it may refuse a policy, keep half of one, or forget it, and all heals by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.admission.bundle import PolicyBundle
from cluster.admission.bundle_keys import KeyRing
from cluster.admission.bundle_opener import BundleOpener
from cluster.admission.policy_engine import PolicyEngineError
from cluster.admission.registrar import Registrar
from cluster.errors import AdmissionDeniedError, ConfigurationError
from cluster.journal.audit_event import AuditAction
from tests.bundles import Signer
from tests.governors import POLICIES, begin, changed_policies, facts, principal, request, started


class Server:
    """Holds the digest of one bundle at a time, and takes as many as it is told to."""

    def __init__(self) -> None:
        self.digest = ""
        self.takes = 100

    def start(self, bundle: PolicyBundle) -> Engine:
        self.takes -= 1
        # As OPA does with the first files of a bundle of which it refuses a later one.
        self.digest = bundle.digest if self.takes >= 0 else "half"
        if self.takes < 0:
            raise ConfigurationError("OPA does not take the policy: 500.")
        return Engine(self, bundle)


class Engine:
    """One bundle on the server; the answers are those of the true engine."""

    def __init__(self, server: Server, bundle: PolicyBundle) -> None:
        self._server, self._true = server, started(bundle)
        self.revision, self.digest = bundle.revision, bundle.digest

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        if self._server.digest != self.digest:
            raise PolicyEngineError("OPA decided by other rules.")
        return self._true.evaluate(entrypoint, input_json)


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    (tmp_path / "private").mkdir()
    return Signer(tmp_path / "private", tmp_path / "keys")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def governor(tmp_path: Path, signer: Signer, server: Server) -> Iterator[Registrar]:
    """A governor whose policy, bundle 1, decides on the server."""
    opened = begin(tmp_path)
    opened.bundles._opener = BundleOpener(lambda: KeyRing.load(tmp_path / "keys"), started, server.start)
    opened.bundles.push(signer.bundle(POLICIES, 1), "operator:test")
    yield opened
    opened.close()


def admits(governor: Registrar, agent_id: str) -> bool:
    try:
        return governor.register(principal(), request(agent_id)).created
    except AdmissionDeniedError:
        return False


def test_a_server_that_refuses_a_policy_and_its_restoration_is_closed_until_it_takes_it(
    tmp_path: Path, governor: Registrar, signer: Signer, server: Server
) -> None:
    """Control: Bundles.heal. The push is refused for its own reason and on record as void; no second push is needed."""
    before, server.takes = governor.policy_status(), 0
    changed = changed_policies(tmp_path, "plans.yaml", {"trial.capabilities": ["conversation"]})
    with pytest.raises(ConfigurationError):
        governor.bundles.push(signer.bundle(changed, 2), "operator:test")
    assert [e.outcome.value for e in facts(tmp_path) if e.action == AuditAction.POLICY_LOAD][-1] == "void"
    assert not admits(governor, "a")
    with pytest.raises(ConfigurationError):
        governor.bundles.heal()
    assert not admits(governor, "a")
    server.takes = 1
    governor.bundles.heal()
    assert admits(governor, "a")
    assert governor.policy_status() == before
    governor.bundles.heal()
    assert server.takes == 0


def test_a_server_that_began_anew_is_given_the_policy_again(governor: Registrar, server: Server) -> None:
    """It has none, so nothing is admitted until then."""
    server.digest = ""
    assert not admits(governor, "a")
    governor.bundles.heal()
    assert admits(governor, "a")
