"""The pages speak of what is there: a file that a page names exists, and so does what it links to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.settings import PROJECT_ROOT

PLACES = r"cluster|actors|serve_apps|cli|policies|tests|docs|examples|benchmarks|deploy"
HIDDEN = {".venv", ".tools", ".git", ".sovereign"}


def pages() -> list[Path]:
    return sorted(p for p in PROJECT_ROOT.rglob("*.md") if not HIDDEN & set(p.relative_to(PROJECT_ROOT).parts))


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(PROJECT_ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    """A renamed file is renamed in the pages too."""
    text = page.read_text()
    named = re.findall(rf"`((?:{PLACES})/[A-Za-z0-9_./-]*[A-Za-z0-9_/])(?::[A-Za-z_.]+)?`", text)
    missing = sorted({n for n in named if not (PROJECT_ROOT / n).exists()})
    assert not missing, f"{page.relative_to(PROJECT_ROOT)} names {missing}"
    linked = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    broken = sorted({link for link in linked if link and not (page.parent / link).exists()})
    assert not broken, f"{page.relative_to(PROJECT_ROOT)} links to {broken}"


def test_a_table_of_files_names_files_of_its_folder() -> None:
    """In a folder's README the first column of a table of files holds names that are there."""
    for room in ("cli", "actors", "serve_apps", "examples"):
        for line in (PROJECT_ROOT / room / "README.md").read_text().splitlines():
            if line.startswith("| `"):
                names = re.findall(r"`([a-z_]+(?:\.py|/))`", line.split("|")[1])
                missing = [name for name in names if not (PROJECT_ROOT / room / name).exists()]
                assert not missing, f"{room}/README.md names {missing}"
