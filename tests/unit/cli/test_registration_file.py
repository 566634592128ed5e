"""A registration is read from JSON or YAML, and a complaint names the file and the place."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.registration_file import MAX_BYTES, read_registration
from cluster.errors import InvalidRequestError, NotFoundError

WANTED = {"agent_id": "a", "capabilities": ["x"]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"agent_id": "a", "capabilities": ["x"]}'),
        ("a.yaml", "agent_id: a\ncapabilities: [x]\n"),
        ("a.yml", '\ufeff{"agent_id": "a", "capabilities": ["x"]}'),
    ],
)
def test_json_and_yaml_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    """Either form gives the same request, with or without a byte-order mark."""
    path = tmp_path / name
    path.write_text(text)
    assert read_registration(path) == WANTED


def test_a_dash_is_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--file -` takes what is piped in."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"agent_id: a\ncapabilities: [x]")))
    assert read_registration(Path("-")) == WANTED


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", b"{", "is not JSON"),
        ("a.json", b'{"a": 1, "a": 2}', "names 'a' twice"),
        ("a.json", b"[" * 100_000, "is n"),
        ("a.yaml", b"a: [", "is not YAML"),
        ("a.yaml", b"!!python/object/apply:os.system ['true']", "is not YAML"),
        ("a.yaml", b"- 1", "holds list"),
        ("a.yaml", b"\xff\xfe", "is not UTF-8"),
        ("a.yaml", b"a" * (MAX_BYTES + 1), "is larger than"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(tmp_path: Path, name: str, text: bytes, says: str) -> None:
    """Nothing is sent, and the sentence says which file and what is wrong with it."""
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(InvalidRequestError) as refused:
        read_registration(path)
    assert str(path) in refused.value.detail
    assert says in refused.value.detail


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A wrong path is told apart from a wrong file."""
    with pytest.raises(NotFoundError, match="No such file"):
        read_registration(tmp_path / "none.yaml")
