"""`sovereign policy` as a process: what it prints and how it exits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.governors import POLICIES, changed_policies


def policy(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli.main", "policy", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)


def fetch(host: str) -> str:
    document: dict[str, Any] = {
        "principal": {"tenant": "default"},
        "agent": {"network_access": ["external_apis"]},
        "destination": {"scheme": "https", "host": host, "port": 443},
    }
    return json.dumps(document)


def test_eval_prints_the_decision(tmp_path: Path) -> None:
    """JSON on stdout; 0 for yes and 3 for no, with every failed check."""
    path = tmp_path / "input.json"
    path.write_text(fetch("en.wikipedia.org"))
    done = policy("eval", "egress", "--input", str(path))
    assert (done.returncode, json.loads(done.stdout)["allow"]) == (0, True)
    done = policy("eval", "egress", "--input", "-", stdin=fetch("evil.example"))
    said = json.loads(done.stdout)
    assert (done.returncode, said["allow"], sorted(said["failed"])) == (
        3,
        False,
        ["destination_allowed", "destination_declared"],
    )
    assert len(said["digest"]) == len(said["input_digest"]) == 64


def test_explain_shows_every_check() -> None:
    """As a person reads it: what failed first, each with what to change."""
    done = policy("explain", "egress", "--input", "-", stdin=fetch("evil.example"))
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.startswith((" FAILED", " passed"))]
    assert done.returncode == 3
    assert [line[:2] for line in lines] == [
        ["FAILED", "destination_allowed"],
        ["FAILED", "destination_declared"],
        ["passed", "port_allowed"],
        ["passed", "scheme_allowed"],
        ["passed", "tenant_active"],
    ]
    assert "Register it with one that has the host." in lines[1][2]


def test_explain_shows_no_check_as_passed_that_was_not_made(tmp_path: Path) -> None:
    """Rules that fail on an input have passed nothing."""
    copy = changed_policies(tmp_path, "manifest.yaml", {})
    rules = copy / "egress.rego"
    broken = "scheme_allowed if is_number(to_number(input.destination.scheme))"
    text = rules.read_text().replace("scheme_allowed if is_number(port_of[input.destination.scheme])", broken)
    rules.write_text(text.replace("default scheme_allowed := false\n", ""))
    done = policy("explain", "egress", "--json", "--policies", str(copy), "--input", "-", stdin=fetch("evil.example"))
    assert done.returncode == 3
    assert [(c["check"], c["passed"]) for c in json.loads(done.stdout)["checks"] if c["passed"]] == []


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (["eval", "everything", "--input", "-"], "{}", 2),
        (["eval", "egress", "--input", "/nowhere"], "", 4),
        (["eval", "egress", "--input", "-"], '{"a": 1, "a": 2}', 2),
        (["schema", "colours"], "", 4),
    ],
)
def test_what_cant_be_asked_is_said(arguments: list[str], stdin: str, code: int) -> None:
    """One sentence, no traceback, and the exit code of its kind."""
    done = policy(*arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (code, "")
    assert "Traceback" not in done.stderr


def test_check_and_test_exit_by_what_they_find(tmp_path: Path) -> None:
    """0 for the shipped policies, 1 with the place for what is wrong."""
    done = policy("test", "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["failed"], said["uncovered"]) == (0, [], [])
    copy = tmp_path / "policies"
    shutil.copytree(POLICIES, copy)
    (copy / "delegation_test.rego").unlink()
    done = policy("check", "--json", "--policies", str(copy))
    assert done.returncode == 1
    assert {p["file"] for p in json.loads(done.stdout)["problems"]} == {"delegation.rego"}
    done = policy("test", "--json", "--policies", str(copy))
    assert (done.returncode, json.loads(done.stdout)["failed"]) == (1, [])


def test_schema_prints_one_data_file(tmp_path: Path) -> None:
    """For an editor."""
    assert json.loads(policy("schema", "regions").stdout)["title"] == "policies/data/regions.yaml"
