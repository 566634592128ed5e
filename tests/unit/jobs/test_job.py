"""What a job's metadata may say, and what may not travel in it."""

from __future__ import annotations

from decimal import Decimal

import pytest

from cluster.errors import InvalidRequestError
from cluster.identity.ids import ProjectId, TenantId, uuid7
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.jobs.job import Job, entrypoint_of, operator, parse_budget, parse_labels

WHO = Principal(TenantId("acme"), ProjectId("growth"), "key:3f9a", frozenset({Scope.AGENTS_INVOKE, Scope.AGENTS_READ}))
KEY = "sk-sov-" + "0" * 16 + "-" + "f" * 64


def test_a_job_reads_back_as_it_was_written() -> None:
    """Identity with its scopes and no more, run, budget and labels, all as text."""
    job = Job(WHO, uuid7(), Decimal("12.50"), {"team": "research", "note": "two words"})
    metadata = job.to_metadata()
    assert all(isinstance(v, str) for v in metadata.values())
    assert metadata["sovereign.budget_usd"] == "12.50"
    assert Job.from_metadata(metadata | {"job_submission_id": "run-1"}) == job


def test_a_job_that_says_nothing_is_the_operators() -> None:
    """`ray job submit` needs no metadata: who holds the token holds every scope."""
    assert Job.from_metadata({"job_submission_id": "raysubmit_1"}) == Job(operator())


@pytest.mark.parametrize(
    "entry",
    [
        {"sovereign.tenant": "../acme"},
        {"sovereign.project": ""},
        {"sovereign.scopes": "everything"},
        {"sovereign.run": "7"},
        {"sovereign.budget_usd": "NaN"},
        {"sovereign.label.Team": "x"},
        {"sovereign.label.team": "x\ny"},
    ],
    ids=str,
)
def test_metadata_that_says_no_one_thing_is_refused(entry: dict[str, str]) -> None:
    """A wrong entry is named; it never becomes somebody else's job."""
    with pytest.raises(InvalidRequestError) as refused:
        Job.from_metadata(entry)
    assert len(refused.value.errors) == 1


@pytest.mark.parametrize("text", ["0", "-1", "1e-7", "inf", "many", "1000000001"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    """Money is decimal, above zero and bounded."""
    with pytest.raises(InvalidRequestError):
        parse_budget(text)


def test_labels_are_named_once_and_hold_no_secret() -> None:
    """Labels are shown to everyone with the cluster's token."""
    assert parse_labels(["team=research", "a=b=c"]) == {"team": "research", "a": "b=c"}
    for wrong in (["team"], ["a=1", "a=2"], [f"note={KEY}"], ["api-key=hunter2"], [f"l{n}=x" for n in range(33)]):
        with pytest.raises(InvalidRequestError) as refused:
            parse_labels(wrong)
        assert KEY not in str(refused.value)


@pytest.mark.parametrize("command", [[], ["python", "x.py", "--key", KEY], ["env", "API_KEY=hunter2", "python"]], ids=str)
def test_a_command_that_seems_to_hold_a_secret_is_not_sent(command: list[str]) -> None:
    """The command line is shown in the dashboard, in logs and in the process list; the refusal does not repeat it."""
    with pytest.raises(InvalidRequestError) as refused:
        entrypoint_of(command)
    assert "hunter2" not in str(refused.value)
    assert KEY not in str(refused.value)


def test_a_command_keeps_its_words() -> None:
    """Ray takes one shell line."""
    assert entrypoint_of(["python", "a b.py", "$HOME"]) == "python 'a b.py' '$HOME'"
