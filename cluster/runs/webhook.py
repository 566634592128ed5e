"""Webhooks: what is told of a run's end, how it is signed and when it is tried again. Standard Webhooks 1.0.0."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from cluster.errors import IntegrityError
from cluster.identity.ids import TenantId
from cluster.identity.secret_file import write_secret
from cluster.runs.run import Run

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
# Seconds after each failed try; after the last one nobody tries any more: a day and a half in all.
BACKOFF_S: Final = (5, 30, 120, 600, 3_600, 10_800, 28_800, 86_400)
# A try is put off by up to this share of its time more, so that what failed together does not come back together.
JITTER: Final = 0.2
# More than anybody asks for: no bound.
MOST_EACH: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A run whose end is to be told, and how often that was tried."""

    run: Run
    tries: int

    @property
    def id(self) -> str:
        """The message's id: the same for every try, so that whoever gets it twice knows."""
        return f"msg_{self.run.run_id}"


def retry_us(tries: int, now_us: int, luck: float) -> int | None:
    """Return when to try again after `tries` failures, `luck` being random in 0 to 1; None for never."""
    if tries > len(BACKOFF_S):
        return None
    return now_us + int(BACKOFF_S[tries - 1] * 1e6 * (1 + JITTER * luck))


def signed_headers(secret: str, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """Return the headers that prove to whoever has `secret` that `body` is from here, and from when."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    mac = hmac.digest(key, b".".join((message_id.encode(), str(timestamp_s).encode(), body)), sha256)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }


class WebhookSecrets:
    """The secret of each tenant, in a file (0600) of its own in a folder (0700), made when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(self, tenant: TenantId) -> str:
        """Return the tenant's secret, as Standard Webhooks writes one; raises IntegrityError for a file that holds none."""
        path = self._directory / tenant
        if not path.exists():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_secret(path, PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())
        text = path.read_text().strip()
        if not text.startswith(PREFIX) or len(base64.b64decode(text.removeprefix(PREFIX))) < 24:
            raise IntegrityError(f"{path} holds no webhook secret.", hint="Remove the file; another one is made.")
        return text


class DeliveryStore(Protocol):
    """The part of the run store that knows whose end is still to be told. Blocks: for threads."""

    def due_deliveries(
        self, now_us: int, again_us: int, limit: int, *, each: int = MOST_EACH, but: Collection[str] = ()
    ) -> list[Delivery]:
        """Return deliveries that are due, each due again at `again_us` should nothing be heard of it until then.

        At most `each` of one tenant, the tenants taking turns, and none of the tenants in `but`.
        """
        ...

    def next_delivery_us(self, *, but: Collection[str] = ()) -> int | None:
        """Return when the next one is due, or None when there is none; those of the tenants in `but` do not count."""
        ...

    def put_off(self, run_id: str, due_us: int) -> None:
        """Try again at `due_us`."""
        ...

    def delivered(self, run_id: str) -> None:
        """Forget a delivery: it was heard, or is given up."""
        ...
