"""Where an agent answers, as governance tells a caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where an agent answers, and the session under which it may be called; secret, never logged."""

    host: str
    port: int
    generation: int
    ticket: bytes
    session_key: bytes
    expires_us: int
    # Whether it is never one of several.
    alone: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {
            "host": self.host,
            "port": self.port,
            "generation": self.generation,
            "ticket": self.ticket.hex(),
            "session_key": self.session_key.hex(),
            "expires_us": self.expires_us,
            "alone": self.alone,
        }

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> Resolved:
        """Return what `to_json` wrote."""
        return cls(**(d | {"ticket": bytes.fromhex(d["ticket"]), "session_key": bytes.fromhex(d["session_key"])}))
