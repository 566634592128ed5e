"""How much waits for the lake on this node, as its shipper says it to every other process: one small file, always whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

# Begins with a dot, which no journal's name does.
FILE_NAME = ".backlog.json"


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the shipper knew at one moment."""

    waiting_bytes: int
    # By the machine's monotonic clock, which all its processes share; after a restart of the machine it lies in the future.
    measured_us: int
    # Since when nothing is shipped, in microseconds since 1970 UTC; 0 while all is well.
    stuck_since_us: int = 0
    # Seconds until shipping is tried again; 0 while all is well.
    retry_after_s: float = 0.0

    def write(self, directory: Path) -> None:
        """Replace what was said before, for the one shipper of the directory; raises OSError."""
        draft = directory / f"{FILE_NAME}.draft"
        draft.write_text(json.dumps(asdict(self)))
        draft.replace(directory / FILE_NAME)

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Return what was said last, or None when there is nothing that can be read."""
        try:
            said = cls(**json.loads((directory / FILE_NAME).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return said if all(type(value) in (int, float) for value in asdict(said).values()) else None
