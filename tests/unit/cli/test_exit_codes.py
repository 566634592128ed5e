"""A script reads exit codes: each error has one, and the manual says what it means."""

from __future__ import annotations

import pytest

from cli.exit_codes import MEANINGS, ExitCode, exit_code_of
from cluster import errors
from cluster.settings import PROJECT_ROOT


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InvalidRequestError, 2),
        (errors.ConfigurationError, 2),
        (errors.AdmissionDeniedError, 3),
        (errors.QuotaExceededError, 3),
        (errors.NotFoundError, 4),
        (errors.UnavailableError, 5),
        (errors.OverloadedError, 5),
        (errors.UnauthenticatedError, 6),
        (errors.ConflictError, 7),
        (errors.DeadlineExceededError, 8),
        (errors.AgentFailedError, 1),
    ],
)
def test_each_kind_of_error_has_its_code(kind: type[errors.SovereignError], code: int) -> None:
    """The numbers are a promise to scripts: they do not change."""
    assert exit_code_of(kind("x")) == code


def test_the_manual_lists_every_code() -> None:
    """docs/operators.md holds the table of exit codes, word for word."""
    text = (PROJECT_ROOT / "docs" / "operators.md").read_text()
    for code in ExitCode:
        assert f"| {code.value} | {MEANINGS[code]} |" in text
