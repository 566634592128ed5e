"""Identity with both issuers, whose keys are known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.clock import FakeClock
from tests.tokens import Identity


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[Identity]:
    identity = Identity(tmp_path, FakeClock())
    identity.know_theirs()
    yield identity
    identity.close()
