"""The end of a run is told until it is heard: across failures, gateways that die, and restarts."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from cluster.agents.egress import EgressPolicy, EgressRefusedError
from cluster.clock import FakeClock
from cluster.errors import InvalidRequestError
from cluster.identity.ids import TenantId
from cluster.runs.run import RunStatus
from cluster.runs.sqlite_run_store import SqliteRunStore
from cluster.runs.webhook import BACKOFF_S, WebhookSecrets, signed_headers
from serve_apps.run_records import RunRecords
from serve_apps.webhooks import UNHEARD_US, Webhooks
from tests.contract.test_run_store import a_run

HOOK = "https://hooks.example/sovereign"


class Receiver:
    """Where webhooks go: answers as a test says, one status after the other, the last one for ever."""

    def __init__(self, *answers: int | Exception) -> None:
        self.answers = list(answers)
        self.asked = asyncio.Event()
        self.heard: list[tuple[dict[str, str], bytes]] = []

    def check(self, url: str) -> None:
        """Take every address."""

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        assert url == HOOK
        self.heard.append((headers, body))
        self.asked.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Gateway:
    def __init__(self, folder: Path, receiver: Receiver, clock: FakeClock) -> None:
        self.store = SqliteRunStore(folder / "runs.sqlite", clock=clock)
        self.records = RunRecords(self.store)
        self.secrets = WebhookSecrets(folder / "webhooks")
        self.clock = clock
        self.webhooks = Webhooks(self.records, egress=cast("Any", receiver), secrets=self.secrets, clock=clock)

    def ended_run(self, **changes: Any) -> str:
        run = a_run(webhook=HOOK, created_us=self.clock.now_us(), updated_us=self.clock.now_us(), **changes)
        self.store.create(run, "enqueue")
        self.store.claim(run.owner, 9, self.clock.now_us())
        self.store.end(run.run_id, RunStatus.SUCCESS, self.clock.now_us(), answer="done")
        return run.run_id

    async def deliver(self) -> None:
        """Tell what is due now."""
        await self.webhooks._round()
        await asyncio.gather(*self.webhooks._telling)


async def test_the_end_of_a_run_is_told_once_it_is_heard(tmp_path: Path) -> None:
    """Signed with the tenant's secret; what was heard is not told again."""
    receiver, clock = Receiver(204), FakeClock()
    gateway = Gateway(tmp_path, receiver, clock)
    run_id = gateway.ended_run()
    await gateway.deliver()
    ((headers, body),) = receiver.heard
    secret = gateway.secrets.of(TenantId("acme"))
    assert headers == signed_headers(secret, f"msg_{run_id}", clock.now_us() // 1_000_000, body) | {
        "content-type": "application/json"
    }
    told = json.loads(body)
    assert (told["type"], told["data"]["run_id"], told["data"]["answer"]) == ("run.success", run_id, "done")
    clock.advance(10 * UNHEARD_US)
    await gateway.deliver()
    assert len(receiver.heard) == 1
    assert gateway.store.next_delivery_us() is None
    gateway.records.close()


async def test_what_is_not_heard_is_told_again_with_the_same_id(tmp_path: Path) -> None:
    """Ever later, by whichever gateway, also after a restart; at last it is given up."""
    receiver, clock = Receiver(500, EgressRefusedError("away"), 302, 500), FakeClock()
    gateway = Gateway(tmp_path, receiver, clock)
    gateway.ended_run()
    for tries, pause_s in enumerate(BACKOFF_S, start=1):
        await gateway.deliver()
        assert len(receiver.heard) == tries
        clock.advance(int(pause_s * 1e6) - 1)
        gateway.records.close()
        gateway = Gateway(tmp_path, receiver, clock)
        await gateway.deliver()
        assert len(receiver.heard) == tries
        clock.advance(int(pause_s * 0.2e6) + 1)
    await gateway.deliver()
    assert len(receiver.heard) == len(BACKOFF_S) + 1
    assert len({headers["webhook-id"] for headers, _ in receiver.heard}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.heard}) == len(receiver.heard)
    assert gateway.store.next_delivery_us() is None
    gateway.records.close()


async def test_a_receiver_that_is_gone_is_not_asked_again(tmp_path: Path) -> None:
    """410 says that it wants no more."""
    receiver = Receiver(410)
    gateway = Gateway(tmp_path, receiver, FakeClock())
    gateway.ended_run()
    await gateway.deliver()
    assert gateway.store.next_delivery_us() is None
    gateway.records.close()


async def test_a_delivery_whose_gateway_died_is_made_by_another(tmp_path: Path) -> None:
    """Nobody else tells while it may live; after that it is told, perhaps a second time."""
    receiver, clock = Receiver(200), FakeClock()
    dead, living = Gateway(tmp_path, receiver, clock), Gateway(tmp_path, receiver, clock)
    dead.ended_run()
    assert len(dead.store.due_deliveries(clock.now_us(), clock.now_us() + UNHEARD_US, 9)) == 1
    await living.deliver()
    assert receiver.heard == []
    clock.advance(UNHEARD_US)
    await living.deliver()
    assert len(receiver.heard) == 1
    dead.records.close()
    living.records.close()


async def test_a_run_that_was_rolled_back_or_removed_is_told_to_nobody(tmp_path: Path) -> None:
    """There is nothing left that it could be told of."""
    receiver, clock = Receiver(200), FakeClock()
    gateway = Gateway(tmp_path, receiver, clock)
    gateway.store.create(a_run(webhook=HOOK, thread_id="t"), "enqueue")
    gateway.store.create(a_run(thread_id="t"), "rollback")
    gateway.store.delete("acme", gateway.ended_run())
    assert gateway.store.next_delivery_us() is None
    gateway.records.close()


async def test_the_loop_tells_of_a_run_as_soon_as_it_has_ended(tmp_path: Path) -> None:
    """It sleeps until there is something, and then it does not wait."""
    receiver, clock = Receiver(200), FakeClock()
    gateway = Gateway(tmp_path, receiver, clock)
    loops = [
        asyncio.create_task(gateway.records.follow_for_ever()),
        asyncio.create_task(gateway.webhooks.deliver_for_ever()),
    ]
    await gateway.records.write(gateway.ended_run)
    async with asyncio.timeout(20):
        await receiver.asked.wait()
    await asyncio.gather(*gateway.webhooks._telling)
    assert gateway.store.next_delivery_us() is None
    assert len(receiver.heard) == 1
    for loop in loops:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop
    gateway.records.close()


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://hooks.example/x?y=1", True),
        ("http://10.0.0.5:8080/x", True),
        ("http://hooks.example/x", False),
        ("https://hooks.example:8443/x", False),
        ("http://10.0.0.5:8081/x", False),
        ("https://user:pw@hooks.example/", False),
        ("ftp://hooks.example/", False),
        ("https://hooks.example/\nx", False),
        ("", False),
    ],
)
def test_where_a_webhook_may_go(tmp_path: Path, url: str, taken: bool) -> None:
    """Public hosts by https, and the operator's own origins; nothing else is kept."""
    egress = EgressPolicy(any_public_host=True, operator_origins=("http://10.0.0.5:8080",))
    gateway = Gateway(tmp_path, cast("Any", egress), FakeClock())
    if taken:
        gateway.webhooks.check(url)
    else:
        with pytest.raises(InvalidRequestError, match="webhook"):
            gateway.webhooks.check(url)
    gateway.records.close()


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fd00::1"])
async def test_a_public_name_with_a_private_address_is_not_called(address: str) -> None:
    """The address is checked that is called: no name leads into the platform's own network."""

    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34", address]

    with pytest.raises(EgressRefusedError, match="not public"):
        await EgressPolicy(any_public_host=True, resolve=resolve).post("https://hooks.example/", {}, b"x")


async def test_an_address_that_fails_here_comes_to_its_end_too(tmp_path: Path) -> None:
    """Control: what `_tell` does with a fault. Else it would be tried every minute for as long as the run is kept."""
    clock = FakeClock()
    gateway = Gateway(tmp_path, Receiver(UnicodeError("label empty or too long")), clock)
    gateway.ended_run()
    for _ in range(len(BACKOFF_S) + 1):
        await gateway.deliver()
        clock.advance(2 * 86_400_000_000)
    assert gateway.store.next_delivery_us() is None
    gateway.records.close()


@pytest.mark.parametrize("host", ["a..b", f"{'a' * 64}.example", ".example"])
async def test_an_address_without_a_host_that_can_be_is_refused(host: str) -> None:
    """Control: the host's encoding in EgressPolicy.check. It is said when it is asked for, by the reason that there is."""
    with pytest.raises(EgressRefusedError, match="names no host"):
        await EgressPolicy(any_public_host=True).post(f"https://{host}/", {}, b"")
