"""`sovereign logs` puts the lines of all components in order of time and shows each on one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli import logs
from cli.output import OUTPUT
from cluster.errors import NotFoundError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    for component, seconds in (("gateway-7", (1, 3)), ("governance", (2, 4))):
        lines = [
            json.dumps(
                {"@timestamp": f"2026-01-01T00:00:0{s}Z", "log.level": "info", "message": f"m{s}\nx", "tenant": {"id": "t"}}
            )
            for s in seconds
        ]
        (folder / f"{component}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_lines_of_all_components_come_in_order_of_time(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files are read as one story; a line break inside a message starts no new line."""
    logs.logs(None, False, 3, home)
    assert capsys.readouterr().out.splitlines() == [
        "2026-01-01T00:00:02Z INFO    governance: m2⏎x tenant.id=t",
        "2026-01-01T00:00:03Z INFO    gateway: m3⏎x tenant.id=t",
        "2026-01-01T00:00:04Z INFO    governance: m4⏎x tenant.id=t",
    ]


def test_one_component_is_chosen_by_its_name(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of the process belongs to no name; with --json every line is a document with its component."""
    monkeypatch.setattr(OUTPUT, "as_json", True)
    logs.logs("gateway", False, 50, home)
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(d["component"], d["message"]) for d in documents] == [("gateway", "m1\nx"), ("gateway", "m3\nx")]


def test_an_unknown_component_is_told_which_there_are(home: Path) -> None:
    """The sentence names what can be asked for."""
    with pytest.raises(NotFoundError) as error:
        logs.logs("bogus", False, 1, home)
    assert error.value.hint == "There are: gateway, governance."


@pytest.mark.parametrize("count", [0, 1, 5, 3000, 5000])
def test_the_tail_of_a_long_file_is_exact(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading from the end in blocks gives the same lines as reading it all."""
    monkeypatch.setattr(logs, "BLOCK_BYTES", 100)
    path = tmp_path / "a.log"
    lines = [f"line {n} " + "é" * (n % 70) for n in range(4000)]
    path.write_text("\n".join(lines) + "\n")
    found = [line.text for line in logs._tail(path, count, path.stat().st_size)]
    assert found == (lines[-count:] if count else [])


def test_following_yields_whole_lines_once(tmp_path: Path) -> None:
    """A line that is still being written is shown when it is whole, and only once."""
    path = tmp_path / "a.log"
    path.write_text("old\n")
    ends = {path: 4}
    with path.open("a") as file:
        file.write("new\nhal")
        file.flush()
        assert [x.text for x in logs._since(path, ends)] == ["new"]
        file.write("f\n")
        file.flush()
        assert [x.text for x in logs._since(path, ends)] == ["half"]
        assert not list(logs._since(path, ends))


def test_following_goes_on_after_a_rotation(tmp_path: Path) -> None:
    """A file that begins anew is read from its beginning."""
    path = tmp_path / "a.log"
    path.write_text("a long line that was seen\n")
    ends = {path: path.stat().st_size}
    path.write_text("new\n")
    assert [x.text for x in logs._since(path, ends)] == ["new"]
