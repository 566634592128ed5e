"""How large a test runs: small in `make test`, full in `make soak`."""

from __future__ import annotations

import os

SOAK = os.environ.get("SOVEREIGN_SOAK") == "1"


def soak(small: int, large: int) -> int:
    """Return `large` in a soak run, else `small`."""
    return large if SOAK else small
