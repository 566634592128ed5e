"""The options of `sovereign keys limit` and `sovereign tenants limit`, as the bodies that they ask with."""

from __future__ import annotations

import pytest
import typer

from cli.allowance import body_of, required, text_of


def test_options_become_the_body_and_are_shown_as_they_are_written() -> None:
    """Only what was said is in the body; `--none` takes all bounds away."""
    budget, limit = ["day.tokens=1000", "total.micro_usd=5", "day.micro_usd=0"], ["concurrency=2"]
    body = body_of(budget, limit)
    assert body == {
        "budget": {"day": {"tokens": 1000, "micro_usd": 0}, "total": {"micro_usd": 5}},
        "limits": {"concurrency": 2},
    }
    assert text_of(body) == "day.tokens=1000 day.micro_usd=0 total.micro_usd=5 concurrency=2"
    assert (body_of(None, limit), body_of(None, None)) == ({"limits": {"concurrency": 2}}, {})
    assert text_of(body_of(None, None, none=True)) == "-"


@pytest.mark.parametrize(
    "text", ["day.tokens", "day.tokens=", "day.tokens=-1", "week.tokens=1", "tokens=1", "day.tokens=1e3", "day.tokens=²"]
)
def test_what_is_no_bound_is_refused(text: str) -> None:
    """With the names that there are, before anything is asked."""
    with pytest.raises(typer.BadParameter, match=r"day\.tokens, day\.micro_usd"):
        body_of([text], None)


def test_a_change_says_something() -> None:
    """Neither nothing, nor all and none."""
    with pytest.raises(typer.BadParameter):
        required(body_of(None, None))
    with pytest.raises(typer.BadParameter):
        body_of(["day.tokens=1"], None, none=True)
