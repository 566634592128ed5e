"""With which policy a governor begins: the last good one, a newer one that is offered, or none at all (threat 29)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import wiring
from cluster.admission.bundle_format import BundleArtefact, BundleRefusedError
from cluster.admission.bundle_keys import PolicyKey, pin
from cluster.admission.registrar import Registrar
from cluster.errors import ConfigurationError
from cluster.journal.audit_event import AuditAction, AuditEvent
from cluster.settings import Settings
from tests.bundles import Signer
from tests.governors import POLICIES, changed_policies, facts


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    policies = changed_policies(tmp_path, "manifest.yaml", {})
    settings = Settings.load(home=tmp_path / "home", policy_dir=policies)
    settings.secret_dir.mkdir(mode=0o700, parents=True)
    return settings


@pytest.fixture
def signer(tmp_path: Path, settings: Settings) -> Signer:
    (tmp_path / "private").mkdir()
    return Signer(tmp_path / "private", settings.policy_keys)


@contextmanager
def governing(settings: Settings) -> Iterator[Registrar]:
    registrar = wiring.build_registrar(settings)
    try:
        yield registrar
    finally:
        registrar.close()


def number(settings: Settings) -> int:
    with governing(settings) as registrar:
        found: int = registrar.policy_status()["number"]
        return found


def loads(settings: Settings) -> list[AuditEvent]:
    return [e for e in facts(settings.home) if e.action == AuditAction.POLICY_LOAD]


def edit(settings: Settings, revision: str) -> None:
    changed_policies(settings.policy_dir.parent, "manifest.yaml", {"revision": revision})


def test_threat_29_without_a_bundle_nothing_begins(settings: Settings) -> None:
    """Policies in a folder decide nothing by themselves: a start that nobody signed for fails, and says what is missing."""
    with pytest.raises(ConfigurationError, match="no policy bundle that may decide"):
        wiring.build_registrar(settings)
    assert loads(settings) == []


def test_the_box_signs_its_folder_when_it_starts(settings: Settings) -> None:
    """The first start is number 1; the same folder again is the same bundle; a changed one is the next."""
    for revision, wanted in (("one", 1), ("one", 1), ("two", 2), ("one", 3)):
        edit(settings, revision)
        wiring.sign_policies(settings)
        assert number(settings) == wanted
    assert settings.policy_key.stat().st_mode & 0o777 == 0o600
    assert [(e.outcome.value, e.actor) for e in loads(settings)] == [("allowed", "start"), ("done", "start")] * 3


def test_a_governor_that_comes_again_takes_no_unsigned_change(settings: Settings) -> None:
    """Only a start signs: what was changed in the folder since decides nothing, however often governance restarts."""
    edit(settings, "one")
    wiring.sign_policies(settings)
    assert number(settings) == 1
    edit(settings, "two")
    with governing(settings) as registrar:
        assert (registrar.policy_status()["number"], registrar.policy_status()["revision"]) == (1, "one")


def test_what_was_pushed_stays_over_a_start(settings: Settings, signer: Signer) -> None:
    """The folder is how a box begins; once an operator pushed a bundle, that one holds, whatever the folder says."""
    wiring.sign_policies(settings)
    with governing(settings) as registrar:
        registrar.bundles.push(signer.bundle(POLICIES, 5), "operator:test")
    edit(settings, "later")
    wiring.sign_policies(settings)
    assert number(settings) == 5


def flip(artefact: bytes) -> bytes:
    return artefact[:3000] + bytes([artefact[3000] ^ 1]) + artefact[3001:]


def unsigned(artefact: bytes) -> bytes:
    read = BundleArtefact.from_bytes(artefact)
    return BundleArtefact(read.manifest, read.files).to_bytes()


@pytest.mark.parametrize("spoil", [flip, unsigned, lambda _: b""], ids=["tampered", "unsigned", "empty"])
def test_threat_29_what_is_offered_and_not_good_leaves_the_last_good(settings: Settings, spoil: Callable[[bytes], bytes]) -> None:
    """Refused with one fact, and the policy before goes on; without one before, nothing begins."""
    start = settings.policy_home / wiring.START_BUNDLE
    wiring.sign_policies(settings)
    good = start.read_bytes()
    start.write_bytes(spoil(good))
    with pytest.raises(ConfigurationError, match="refused"):
        wiring.build_registrar(settings)
    start.write_bytes(good)
    assert number(settings) == 1
    edit(settings, "two")
    wiring.sign_policies(settings)
    start.write_bytes(spoil(start.read_bytes()))
    before = len(loads(settings))
    assert number(settings) == 1
    assert [e.outcome.value for e in loads(settings)[before:]] == ["denied"]


def test_threat_29_an_accepted_bundle_that_was_changed_on_disk_decides_nothing(settings: Settings, signer: Signer) -> None:
    """An older bundle put in its place, a changed one and none at all: nothing begins until a newer one is offered."""
    wiring.sign_policies(settings)
    with governing(settings) as registrar:
        registrar.bundles.push(signer.bundle(POLICIES, 5), "operator:test")
    shelf = settings.policy_home / "bundles"
    old, new = sorted(shelf.glob("*.tar"))
    for spoil in (lambda: shutil.copy(old, new), lambda: new.write_bytes(flip(old.read_bytes())), new.unlink):
        spoil()
        with pytest.raises(ConfigurationError, match="number 5"):
            wiring.build_registrar(settings)
    given = settings.home / "given.tar"
    given.write_bytes(signer.bundle(POLICIES, 6))
    assert number(settings.model_copy(update={"policy_bundle": given})) == 6


def test_a_bundle_from_elsewhere_needs_no_key_of_this_box(settings: Settings, signer: Signer) -> None:
    """With SOVEREIGN_POLICY_BUNDLE the box signs nothing, and what it signed before is not taken."""
    given = settings.home / "given.tar"
    given.write_bytes(signer.bundle(POLICIES, 1))
    elsewhere = settings.model_copy(update={"policy_bundle": given})
    wiring.sign_policies(elsewhere)
    assert not settings.policy_key.exists()
    assert number(elsewhere) == 1
    assert number(elsewhere) == 1

    key = PolicyKey.create(settings.policy_key)
    pin(settings.policy_home / "box-key", key.public_pem)
    mine = key.sign(BundleArtefact.from_bytes(signer.bundle(POLICIES, 2))).to_bytes()
    with governing(elsewhere) as registrar, pytest.raises(BundleRefusedError, match="not pinned"):
        registrar.bundles.push(mine, "operator:test")


def test_a_lost_box_key_is_made_anew(settings: Settings) -> None:
    """A box whose own key or artefact is gone signs its folder again under the next number, and begins."""
    wiring.sign_policies(settings)
    assert number(settings) == 1
    settings.policy_key.unlink()
    shutil.rmtree(settings.policy_home / "box-key")
    wiring.sign_policies(settings)
    assert number(settings) == 2
    shutil.rmtree(settings.policy_home / "bundles")
    wiring.sign_policies(settings)
    assert number(settings) == 3
