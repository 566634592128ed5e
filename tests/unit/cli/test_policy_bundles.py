"""`sovereign policy build, sign, trust, keygen and list` as processes, without a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster.admission.bundle_format import BundleArtefact
from cluster.admission.bundle_keys import KeyRing


def policy(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "cli.main", "policy", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, json.loads(done.stdout or done.stderr)


def test_a_bundle_is_built_signed_and_its_key_pinned(tmp_path: Path) -> None:
    """What the manual says, in its order; the same folder and number give a bundle that the ring takes."""
    home, key, out = ["--home", str(tmp_path / "home")], tmp_path / "ada.key", tmp_path / "policy.tar"
    code, made = policy("keygen", "--out", str(key))
    assert code == 0
    assert key.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in Path(made["public"]).read_text()
    assert policy("build", "--number", "12", "--out", str(out), *home)[1]["number"] == 12
    code, signed = policy("sign", str(out), "--key", str(key), *home)
    assert (code, signed["key_id"]) == (0, made["key_id"])
    assert policy("trust", made["public"], *home)[1] == {"key_id": made["key_id"], "trusted": True}
    ring = KeyRing.load(tmp_path / "home" / "policy" / "keys")
    assert ring.verify(BundleArtefact.from_bytes(out.read_bytes())) == made["key_id"]
    assert policy("list", *home)[1] == {"in_force": 0, "bundles": [], "keys": [made["key_id"]]}
    # Nothing to go back to is said before anything is asked for.
    code, problem = policy("rollback", "--key", str(key), *home)
    assert (code, problem["error"]["code"]) == (4, "not_found")
    assert policy("untrust", made["key_id"], *home)[0] == 0
