"""How the code is laid out: who may import whom, who may read the environment, and what each folder says of itself."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from cluster.settings import PROJECT_ROOT

ROOMS = ("cluster", "actors", "serve_apps", "cli")
# Where the environment may be touched besides cluster/settings.py, and why.
ENVIRONMENT = {
    "cluster/settings.py": "the one place where settings are read",
    "cluster/identity/secrets.py": "reads the variables that references to secrets name",
    "actors/topology.py": "hands the operator's environment on to the processes that it starts",
    "actors/joined_node.py": "hands the operator's environment on to the processes that it starts",
    "actors/ray_internals.py": "tells Ray how to authenticate, which it reads from nowhere else",
}


def sources() -> list[Path]:
    return sorted(p for room in ROOMS for p in (PROJECT_ROOT / room).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PROJECT_ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module that a file names in an import, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively; name the room"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def backends() -> set[str]:
    """`local_object_store.py` beside `object_store.py` is a backend of that port."""
    found = set()
    for path in sources():
        _, _, noun = path.name.partition("_")
        while noun:
            if (path.parent / noun).exists():
                found.add(module_of(path))
            _, _, noun = noun.partition("_")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_the_one_of_this_project(room: str) -> None:
    """The rooms' names are common words: another package of that name must not be what is imported."""
    module = importlib.import_module(room)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve().is_relative_to(PROJECT_ROOT)


def test_only_the_wiring_names_backends() -> None:
    """A feature imports another's values and ports; which backend stands behind a port is chosen in one place."""
    known = backends()
    for path in sources():
        if module_of(path) == "cluster.wiring":
            continue
        # A backend may build on another one beside it.
        own = module_of(path).rpartition(".")[0] if module_of(path) in known else None
        named = {m for m in imports_of(path) & known if m.rpartition(".")[0] != own}
        assert not named, f"{path.relative_to(PROJECT_ROOT)} imports {sorted(named)}; ask cluster/wiring.py for it"


def test_the_environment_is_read_in_one_file() -> None:
    """A setting that is read elsewhere would be documented nowhere."""
    for path in sources():
        name = str(path.relative_to(PROJECT_ROOT))
        touched = re.search(r"\bos\.(environb?|getenvb?|putenv|unsetenv)\b|from os import .*\benviron", path.read_text())
        assert not touched or name in ENVIRONMENT, f"{name} touches the environment; add a setting to cluster/settings.py"


def test_no_file_is_named_after_nothing() -> None:
    """`utils.py` says that nobody found the noun."""
    vague = {"utils.py", "helpers.py", "common.py", "manager.py", "base.py", "misc.py"}
    assert not [p for p in sources() if p.name in vague]


def folders() -> list[Path]:
    rooms = [PROJECT_ROOT / r for r in (*ROOMS, "policies", "benchmarks", "examples", "tests")]
    features = [p.parent for p in (PROJECT_ROOT / "cluster").glob("*/*.py")]
    return sorted({*rooms, *features})


@pytest.mark.parametrize("folder", folders(), ids=lambda p: str(p.relative_to(PROJECT_ROOT)))
def test_each_folder_says_what_it_is(folder: Path) -> None:
    """A README of at most 40 lines says what a folder's words mean, what it owns and what always holds."""
    readme = folder / "README.md"
    assert readme.exists(), f"{folder} has no README.md"
    assert 3 <= len(readme.read_text().splitlines()) <= 40
