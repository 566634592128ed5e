"""What governance says of the walls round tools."""

from __future__ import annotations

from typing import Literal

import pytest

from actors.governance import describe_sandbox


@pytest.mark.parametrize(("kind", "strength"), [("bubblewrap", "strong"), ("process", "weak")])
def test_status_says_what_confines_tools(kind: Literal["bubblewrap", "process"], strength: str) -> None:
    """By the sandbox that the node's start chose, and without the warning that the start gave."""
    said = describe_sandbox(kind)
    assert (said["sandbox"], said["strength"]) == (kind, strength)
