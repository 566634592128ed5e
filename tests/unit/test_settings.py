"""How settings are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.settings import PROJECT_ROOT, Settings


def test_a_folder_is_that_of_the_operator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative one counts from where they stand, not from where the process that reads it later stands."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "POLICY_DIR", "SEARCH_CORPUS"):
        monkeypatch.setenv(f"SOVEREIGN_{name}", "given")
    settings = Settings.load()
    assert {settings.home, settings.policy_dir, settings.search_corpus} == {tmp_path / "given"}


def test_an_empty_setting_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty SOVEREIGN_SEARCH_CORPUS must not become the folder that somebody happens to stand in."""
    monkeypatch.setenv("SOVEREIGN_SEARCH_CORPUS", "")
    monkeypatch.setenv("SOVEREIGN_HTTP_PORT", "")
    settings = Settings.load()
    assert (settings.search_corpus, settings.http_port) == (PROJECT_ROOT / "docs", 8080)
