"""Tells of runs that have ended whoever asked for it, signed, until they hear it or are given up; from any gateway."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import Final

import orjson

from cluster.agents.egress import EgressPolicy, EgressRefusedError
from cluster.clock import Clock, utc
from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.ids import TenantId
from cluster.runs.webhook import Delivery, WebhookSecrets, retry_us, signed_headers
from serve_apps.run_records import RunRecords
from serve_apps.run_requests import run_object

log = logging.getLogger(__name__)

AT_ONCE: Final = 16
# A try that nobody says anything of for so long was made by a gateway that died: above what one takes.
UNHEARD_US: Final = 60_000_000
# How often other gateways' deliveries are looked for.
LOOK_S: Final = 30.0
# The receiver says that it wants no more (RFC 9110, section 15.5.11).
GONE: Final = 410


class Webhooks:
    """For one event loop. At least once: a receiver that hears a message twice knows it by its id."""

    def __init__(self, records: RunRecords, *, egress: EgressPolicy, secrets: WebhookSecrets, clock: Clock) -> None:
        self._records = records
        self._store = records.store
        self._egress = egress
        self._secrets = secrets
        self._clock = clock
        self._telling: set[asyncio.Task[None]] = set()

    def check(self, url: str) -> None:
        """Raise InvalidRequestError for an address that may not be called, as far as that shows from its text."""
        try:
            self._egress.check(url)
        except EgressRefusedError:
            wrong = FieldError("webhook", "must be an https URL of a public host, on port 443, without a user name")
            raise InvalidRequestError("The webhook may not be called.", errors=[wrong]) from None

    async def deliver_for_ever(self) -> None:
        """Deliver what is due until it is cancelled."""
        try:
            while True:
                self._records.ended.clear()
                pause = LOOK_S
                try:
                    pause = await self._round()
                except Exception:
                    log.exception("webhooks can't be delivered")
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._records.ended.wait()
        finally:
            for task in self._telling:
                task.cancel()

    async def _round(self) -> float:
        """Begin to deliver what is due, and return for how many seconds nothing is."""
        now_us = self._clock.now_us()
        due_us = await self._records.read(self._store.next_delivery_us)
        free = AT_ONCE - len(self._telling)
        if due_us is None or free == 0:
            return LOOK_S
        if due_us > now_us:
            return min(LOOK_S, (due_us - now_us) / 1e6)
        for delivery in await self._records.read(self._store.due_deliveries, now_us, now_us + UNHEARD_US, free):
            task = asyncio.create_task(self._tell(delivery), name=f"webhook {delivery.id}")
            self._telling.add(task)
            task.add_done_callback(self._told)
        return 0.0

    def _told(self, task: asyncio.Task[None]) -> None:
        self._telling.discard(task)
        self._records.ended.set()  # there is room for another
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a webhook failed here; it is tried again", exc_info=error)

    async def _tell(self, delivery: Delivery) -> None:
        run, now_us = delivery.run, self._clock.now_us()
        body = orjson.dumps({"type": f"run.{run.status}", "timestamp": utc(run.updated_us).isoformat(), "data": run_object(run)})
        secret = await self._records.read(self._secrets.of, TenantId(run.tenant))
        headers = signed_headers(secret, delivery.id, now_us // 1_000_000, body)
        try:
            status = await self._egress.post(run.webhook, headers | {"content-type": "application/json"}, body)
            why = "" if 200 <= status < 300 else f"it answered {status}"
        except EgressRefusedError as refused:
            status, why = 0, str(refused)
        except Exception as fault:
            # Whatever it is, it may be the address': such a one must come to its end too.
            log.exception("the webhook of run %s failed here", run.run_id)
            status, why = 0, type(fault).__name__
        again_us = retry_us(delivery.tries, self._clock.now_us(), random.random()) if status != GONE else None  # noqa: S311
        if why and again_us is not None:
            await self._records.read(self._store.put_off, run.run_id, again_us)
            return
        if why:
            log.warning("the webhook of run %s is given up after %d tries: %s", run.run_id, delivery.tries, why)
        await self._records.read(self._store.delivered, run.run_id)
