"""Errors cross processes by pickle and machines as problem documents; what they say must arrive."""

from __future__ import annotations

import importlib
import json
import pickle
import pkgutil

import pytest

import cluster
from cluster.errors import FieldError, InternalError, SovereignError, from_problem


def every_error() -> list[type[SovereignError]]:
    for module in pkgutil.walk_packages(cluster.__path__, "cluster."):
        importlib.import_module(module.name)
    found: list[type[SovereignError]] = []
    waiting = [SovereignError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += kind.__subclasses__()
    return sorted(set(found), key=lambda kind: kind.__qualname__)


def an_error(kind: type[SovereignError]) -> SovereignError:
    return kind("What happened.", hint="What to do.", errors=[FieldError("a.b", "is wrong")], retry_after_s=1.5)


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
class TestEachError:
    def test_survives_pickling(self, kind: type[SovereignError]) -> None:
        """An error raised in one process says the same in another."""
        error = an_error(kind)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert (again.detail, again.hint, again.errors, again.retry_after_s) == (
            error.detail,
            error.hint,
            error.errors,
            error.retry_after_s,
        )
        assert str(again) == str(error)

    def test_survives_a_problem_document(self, kind: type[SovereignError]) -> None:
        """A client gets back the kind of error, its fields and its hint; one code means one kind."""
        problem = json.loads(json.dumps(an_error(kind).to_problem()))
        again = from_problem(problem)
        assert again.code == kind.code
        assert again.to_problem() == {**problem, "title": type(again).title()}

    def test_says_its_status_and_is_named_an_error(self, kind: type[SovereignError]) -> None:
        """Every kind has a status that HTTP knows, and a name that ends in Error."""
        assert 400 <= kind.status <= 599
        assert kind.__name__.endswith("Error")


def test_codes_differ_unless_they_mean_the_same() -> None:
    """Two kinds with one code would come back as one of them."""
    codes: dict[str, type[SovereignError]] = {}
    for kind in every_error():
        other = codes.setdefault(kind.code, kind)
        assert other is kind or {other, kind} == {SovereignError, InternalError}, f"{kind} and {other} share {kind.code}"


def test_an_unknown_problem_is_a_fault_of_the_platform() -> None:
    """A newer server's code is not mistaken for a known one, and nothing is needed to be there."""
    assert isinstance(from_problem({"code": "from_the_future", "detail": "x"}), InternalError)
    assert isinstance(from_problem({}), InternalError)
