"""The embedded issuer's keys on disk: who may read them, and how one takes over from another."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.clock import FakeClock
from cluster.errors import IntegrityError
from cluster.identity.embedded_key_set import KEPT_S, EmbeddedKeySet
from tests.tokens import OURS, Identity, decode

SECOND = 1_000_000


def ids(keys: EmbeddedKeySet) -> list[str]:
    return [key["kid"] for key in keys.public_jwks()["keys"]]


def test_the_file_is_its_owners_and_what_is_published_is_public(identity: Identity) -> None:
    """0600 from its first byte on, in a folder of 0700; nothing private in what anyone may have."""
    path = identity.folder / "secrets" / "token-keys.json"
    identity.keys.rotate()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert all("d" not in key for key in identity.keys.public_jwks()["keys"])
    secret = json.loads(path.read_text())["signing"]["d"]
    assert secret not in repr(identity.keys.find(ids(identity.keys)[0]))


def test_a_rotated_key_is_kept_until_its_tokens_ended(identity: Identity) -> None:
    """Tokens of before go on to their end; the old private half is gone at once, the public one when nobody needs it."""
    _, key = identity.api_key()
    before = identity.issue(key, scopes=None, life_s=None).text
    old = ids(identity.keys)[0]
    new = identity.keys.rotate()
    assert ids(identity.keys) == [new, old]
    after = identity.issue(key, scopes=None, life_s=None).text
    for token in (before, after):
        assert identity.verifier.verify(token).principal == key.principal
    stored = json.loads((identity.folder / "secrets" / "token-keys.json").read_text())
    assert "d" not in stored["retired"][0]["key"]
    identity.clock.advance(KEPT_S * SECOND)
    assert ids(identity.keys) == [new]
    assert identity.keys.find(old) is None
    newest = identity.keys.rotate()
    assert ids(identity.keys) == [newest, new]
    assert len(json.loads((identity.folder / "secrets" / "token-keys.json").read_text())["retired"]) == 1


def test_another_process_knows_a_new_key_at_once(identity: Identity) -> None:
    """It looks at the file again for a key id that it does not know."""
    other = Identity(identity.folder, identity.clock)
    old = other.keys.signing_key().kid
    new = identity.keys.rotate()
    _, key = identity.api_key()
    token = identity.issue(key, scopes=None, life_s=None).text
    assert decode(token.split(".")[0])["kid"] == new != old
    assert other.verifier.verify(token).principal == key.principal
    assert other.keys.signing_key().kid == new
    other.close()


def test_another_process_gives_up_an_old_key_in_time(identity: Identity) -> None:
    """Also one that never met the new one: an old private key that somebody kept opens nothing for ever."""
    other = Identity(identity.folder, identity.clock)
    old = str(other.keys.signing_key().kid)
    identity.keys.rotate()
    assert other.keys.find(old) is not None
    identity.clock.advance(KEPT_S * SECOND)
    assert other.keys.find(old) is None
    other.close()


def test_many_that_begin_at_once_make_one_key(tmp_path: Path) -> None:
    """However many gateways start on a fresh home."""
    clock, path = FakeClock(), tmp_path / "secrets" / "k.json"
    with ThreadPoolExecutor(8) as pool:
        sets = list(pool.map(lambda _: EmbeddedKeySet(path, OURS, clock), range(16)))
    assert len({keys.signing_key().kid for keys in sets}) == 1


def test_rotations_at_once_lose_no_key(identity: Identity) -> None:
    """Each takes over from the one before, so that every key that may have signed is kept."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: identity.keys.rotate(), range(10)))
    assert len(set(ids(identity.keys))) == 11


@pytest.mark.parametrize("text", ["", "{", "[]", '{"signing": 5}', '{"signing": {"kty": "OKP", "d": "SECRET"}, "retired": []}'])
def test_a_file_that_is_none_of_ours_is_an_error_that_says_what_to_do(tmp_path: Path, text: str) -> None:
    """And does not quote what it could not read."""
    path = tmp_path / "k.json"
    path.write_text(text)
    with pytest.raises(IntegrityError, match=r"k\.json") as broken:
        EmbeddedKeySet(path, OURS, FakeClock())
    assert "SECRET" not in str(broken.value)
    assert "remove it" in broken.value.hint
