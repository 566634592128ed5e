"""`sovereign token` where no cluster runs: what it refuses, and the signing key, which needs none."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cluster import wiring
from cluster.journal.audit_event import AuditAction
from cluster.settings import Settings
from tests.governors import facts
from tests.unit.cli.test_command import sovereign


def test_a_rotation_is_recorded_and_keeps_the_old_key(tmp_path: Path) -> None:
    """It works on the home's files alone; the fact is on disk before the key."""
    settings = Settings.load(home=tmp_path)
    settings.secret_dir.mkdir(mode=0o700)
    old = wiring.signing_keys(settings).public_jwks()["keys"][0]["kid"]
    done = sovereign("token", "rotate-key", "--json", "--home", str(tmp_path))
    assert done.returncode == 0, done.stderr
    new = json.loads(done.stdout)["kid"]
    assert [key["kid"] for key in wiring.signing_keys(settings).public_jwks()["keys"]] == [new, old]
    (path,) = settings.secret_dir.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [(f.action, f.actor) for f in facts(tmp_path)] == [(AuditAction.SIGNING_KEY_ROTATE, "operator")]


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["token"], 5, "No cluster runs"),
        (["token", "--key-file", "/nowhere"], 6, "can't be read"),
        (["token", "--role", "king"], 2, "Invalid value"),
        (["token", "--life-s", "901"], 2, "Invalid value"),
        (["token", "revoke"], 2, "no token on stdin"),
        (["token", "rotate-key"], 4, "no cluster's home"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(command: list[str], code: int, says: str, tmp_path: Path) -> None:
    """With the exit code of its kind, and nothing on stdout or on disk."""
    done = sovereign(*command, "--home", str(tmp_path / "none"), input="")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr
    assert not (tmp_path / "none").exists()
