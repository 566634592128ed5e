"""How settings are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ConfigurationError
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


def test_a_process_has_the_clusters_settings_with_its_own_nodes_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What differs from node to node comes from the node's environment, and everything else from who sent the settings."""
    sent = Settings.load(home=tmp_path / "head", queue_limit=7).to_json()
    assert Settings.of_this_node(sent) == Settings.from_json(sent)
    monkeypatch.setenv("SOVEREIGN_NODE", "w1")
    monkeypatch.setenv("SOVEREIGN_HOME", str(tmp_path / "here"))
    monkeypatch.setenv("SOVEREIGN_HOST", "127.0.0.2")
    monkeypatch.setenv("SOVEREIGN_QUEUE_LIMIT", "9")
    here = Settings.of_this_node(sent)
    assert (here.node, here.host, here.queue_limit) == ("w1", "127.0.0.2", 7)
    assert here.journal_dir == tmp_path / "here" / "nodes" / "w1" / "journal"


def test_the_node_that_up_starts_keeps_the_home_as_it_is(tmp_path: Path) -> None:
    """Its journals and sockets are where they were before there were nodes; another node's are apart."""
    home = Settings.load(home=tmp_path)
    other = home.of_node("w1")
    assert home.journal_dir == tmp_path / "journal"
    assert home.coordination_path == other.coordination_path
    assert len({home.run_dir, other.run_dir, home.of_node("w2").run_dir}) == 3
    assert len({home.metrics_dir, other.metrics_dir, home.of_node("w2").metrics_dir}) == 3


@pytest.mark.parametrize("name", ["../x", "a/b", "W1", "a.b", "-a"])
def test_a_nodes_name_is_safe_in_a_path(name: str) -> None:
    """It names a folder."""
    with pytest.raises(ConfigurationError):
        Settings.load(node=name)
