"""The manual's table of settings is the settings: each is there, with its default and its words, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

from cluster.settings import PROJECT_ROOT, Settings

MANUAL = PROJECT_ROOT / "docs" / "operators.md"


def default_of(name: str) -> str:
    value = Settings.model_fields[name].default
    if isinstance(value, Path) and value.is_absolute():
        value = value.relative_to(PROJECT_ROOT)
    if isinstance(value, bool):
        value = str(value).lower()
    return "" if value in ("", None) else f"`{value}`"


def wanted_rows() -> list[str]:
    return [
        f"| `SOVEREIGN_{name.upper()}` | {default_of(name)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]


def test_every_setting_is_documented_and_every_documented_setting_exists() -> None:
    """An operator can trust the table; on a difference this prints the table as it should be."""
    found = [line for line in MANUAL.read_text().splitlines() if line.startswith("| `SOVEREIGN_")]
    wanted = wanted_rows()
    assert found == wanted, "docs/operators.md must hold exactly these rows:\n" + "\n".join(wanted)


def test_no_page_speaks_of_a_setting_that_is_not_there() -> None:
    """A renamed setting is renamed everywhere."""
    known = {f"SOVEREIGN_{name.upper()}" for name in Settings.model_fields} | {"SOVEREIGN_SOAK"}
    pages = [PROJECT_ROOT / "README.md", *(PROJECT_ROOT / "docs").rglob("*.md"), *PROJECT_ROOT.glob("*/README.md")]
    for page in pages:
        named = set(re.findall(r"\bSOVEREIGN_[A-Z_]+[A-Z]\b", page.read_text()))
        assert named <= known, f"{page.relative_to(PROJECT_ROOT)} names {sorted(named - known)}"
