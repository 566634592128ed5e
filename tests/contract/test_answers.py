"""What every backend of kept answers does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import InvalidRequestError, OverloadedError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.runs.answers import AnswerStore, Begun, CallKey, KeptAnswer, Known, Progress, fingerprint
from cluster.runs.sqlite_answers import AnswerBounds, SqliteAnswers

KEY = CallKey("acme", "default", "k-1")
CALL = Begun(b"f" * 32, "gateway.a/e1", "i-1", 1_000)
ANSWER = KeptAnswer(200, (("content-type", "application/json"),), b'{"a": "\xc3\xa9"}')
BOUNDS = AnswerBounds(keep_us=100, answer_bytes=20, keys=3, bytes=30)


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnswerStore]:
    store = SqliteAnswers(tmp_path / "answers.sqlite", BOUNDS)
    yield store
    store.close()


def test_a_key_belongs_to_its_first_call(store: AnswerStore) -> None:
    """Whoever comes second learns of the first: that it began, and then its answer byte for byte."""
    second = replace(CALL, invocation_id="i-2", owner="gateway.b/e1")
    assert store.begin(KEY, CALL) is None
    assert store.begin(KEY, second) == Known(CALL, Progress.BEGUN)
    store.answered(KEY, "i-1", ANSWER)
    assert store.begin(KEY, second) == Known(CALL, Progress.ANSWERED, ANSWER)


def test_keys_of_others_are_other_keys(store: AnswerStore) -> None:
    """No tenant and no project meets another's answer."""
    store.begin(KEY, CALL)
    store.answered(KEY, "i-1", ANSWER)
    for other in (replace(KEY, tenant="rival"), replace(KEY, project="p2"), replace(KEY, key="k-2")):
        assert store.begin(other, CALL) is None


def test_a_forgotten_key_can_be_used_again(store: AnswerStore) -> None:
    """Only by whoever began with it: a late word of an earlier call changes nothing."""
    store.begin(KEY, CALL)
    store.forget(KEY, "i-0")
    store.answered(KEY, "i-0", ANSWER)
    assert store.begin(KEY, CALL) == Known(CALL, Progress.BEGUN)
    store.forget(KEY, "i-1")
    assert store.begin(KEY, replace(CALL, invocation_id="i-2")) is None


def test_an_answer_that_is_too_large_is_only_noted(store: AnswerStore) -> None:
    """The call is known to have been answered, and its answer is not there."""
    store.begin(KEY, CALL)
    store.answered(KEY, "i-1", replace(ANSWER, body=b"x" * 21))
    assert store.begin(KEY, CALL) == Known(CALL, Progress.TOO_LARGE)


def test_what_is_kept_has_an_age(store: AnswerStore) -> None:
    """After it the key is as new, whether or not anybody has looked after the store."""
    store.begin(KEY, CALL)
    store.answered(KEY, "i-1", ANSWER)
    assert store.begin(KEY, replace(CALL, began_us=1_099)) is not None
    assert store.prune(1_099) == 0
    assert store.begin(KEY, replace(CALL, began_us=1_100)) is None
    assert store.prune(1_200) == 1


def test_what_is_kept_is_bounded(store: AnswerStore) -> None:
    """By count and by size, for each tenant; what goes makes room."""
    for n in range(3):
        assert store.begin(replace(KEY, key=f"n{n}"), CALL) is None
    with pytest.raises(OverloadedError, match="3 answers"):
        store.begin(KEY, CALL)
    assert store.begin(replace(KEY, tenant="rival"), CALL) is None
    store.forget(replace(KEY, key="n0"), "i-1")
    for n in (1, 2):
        store.answered(replace(KEY, key=f"n{n}"), "i-1", replace(ANSWER, body=b"x" * 15))
    with pytest.raises(OverloadedError, match="30 bytes"):
        store.begin(KEY, CALL)
    assert store.prune(1_100) == 3
    assert store.begin(KEY, CALL) is None


_KILLED = """
import os, sys, signal
from pathlib import Path
from tests.contract.test_answers import CALL, KEY
from cluster.runs.sqlite_answers import SqliteAnswers
SqliteAnswers(Path(sys.argv[1])).begin(KEY, CALL)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_began_is_known(tmp_path: Path) -> None:
    """It outlives kill -9, and another process sees it."""
    path = tmp_path / "answers.sqlite"
    assert subprocess.run([sys.executable, "-c", _KILLED, str(path)], timeout=60, check=False).returncode == -9
    store = SqliteAnswers(path)
    assert store.begin(KEY, CALL) == Known(CALL, Progress.BEGUN)
    store.close()


@pytest.mark.parametrize("key", ["", "x" * 256, "é", "a\nb", "a\x00"])
def test_what_is_no_key_is_refused(key: str) -> None:
    """A key is 1 to 255 printable ASCII characters."""
    with pytest.raises(InvalidRequestError):
        CallKey.of(Principal(TenantId("acme"), ProjectId("default"), "key:1", frozenset()), key)


def test_a_fingerprint_is_of_method_path_and_body() -> None:
    """Another of them is another call, and no two run into each other."""
    calls = [("POST", "/a", b"x"), ("POST", "/a", b"y"), ("POST", "/b", b"x"), ("PUT", "/a", b"x"), ("POST", "/ax", b"")]
    assert len({fingerprint(*call) for call in calls}) == len(calls)
