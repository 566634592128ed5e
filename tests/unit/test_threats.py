"""tests/threats.toml says which test and which control stand against each threat; here that is held to be true."""

from __future__ import annotations

import ast
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cluster.settings import PROJECT_ROOT

DOCUMENT: dict[str, Any] = tomllib.loads((PROJECT_ROOT / "tests" / "threats.toml").read_text())
ENTRIES: dict[str, dict[str, Any]] = DOCUMENT.get("threat", {})


@cache
def names_in(path: Path) -> frozenset[str]:
    """Every function and class of a file, as `function`, `Class` and `Class.method`."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(prefix + child.name)
                visit(child, f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else prefix)
            else:
                visit(child, prefix)

    visit(ast.parse(path.read_text()), "")
    return frozenset(found)


@pytest.mark.parametrize("number", DOCUMENT["claimed"])
def test_a_claimed_threat_has_a_test_and_a_control(number: int) -> None:
    """A threat that finished work claims to stand against is covered."""
    entry = ENTRIES.get(str(number))
    assert entry, f"threat {number} is claimed, and tests/threats.toml has no [threat.{number}]"
    assert entry.get("tests"), f"threat {number} names no test"
    assert entry.get("controls"), f"threat {number} names no control"
    assert entry.get("says"), f"threat {number} does not say what is tried and what must happen"


@pytest.mark.parametrize("number", ENTRIES)
def test_what_an_entry_names_exists(number: str) -> None:
    """A renamed test or control can't leave a threat uncovered unseen."""
    entry = ENTRIES[number]
    for node in entry.get("tests", ()):
        file, *names = node.split("::")
        path = PROJECT_ROOT / file
        assert path.exists(), f"threat {number}: there is no {file}"
        assert names, f"threat {number}: {node} names no test"
        assert ".".join(names) in names_in(path), f"threat {number}: {file} has no {'::'.join(names)}"
    for control in entry.get("controls", ()):
        file, _, name = control.partition(":")
        path = PROJECT_ROOT / file
        assert path.exists(), f"threat {number}: there is no {file}"
        if path.suffix == ".py":
            assert name in names_in(path), f"threat {number}: {file} has no {name}"
        else:
            assert name in path.read_text(), f"threat {number}: {file} does not say {name}"
