"""What a webhook's receiver can rely on: signatures that others' libraries check, and when a message comes again."""

from __future__ import annotations

import base64
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import IntegrityError
from cluster.identity.ids import TenantId
from cluster.runs.webhook import BACKOFF_S, WebhookSecrets, retry_us, signed_headers


def test_the_signature_is_the_standards() -> None:
    """The example of Standard Webhooks' own libraries."""
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_each_tenant_has_a_secret_of_its_own(tmp_path: Path) -> None:
    """Made once, of 32 random bytes, and readable by nobody else on the machine."""
    secrets = WebhookSecrets(tmp_path / "webhooks")
    acme, rival = secrets.of(TenantId("acme")), secrets.of(TenantId("rival"))
    assert acme != rival
    assert len(base64.b64decode(acme.removeprefix("whsec_"))) == 32
    assert WebhookSecrets(tmp_path / "webhooks").of(TenantId("acme")) == acme
    assert stat.S_IMODE((tmp_path / "webhooks" / "acme").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "webhooks").stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_YWJj", "secret"])
def test_a_secret_that_is_none_signs_nothing(tmp_path: Path, text: str) -> None:
    """A weak or cut secret would let others sign."""
    (tmp_path / "acme").write_text(text)
    with pytest.raises(IntegrityError, match="acme"):
        WebhookSecrets(tmp_path).of(TenantId("acme"))


@given(tries=st.integers(1, 20), luck=st.floats(0, 1))
def test_a_message_is_tried_ever_later_and_not_for_ever(tries: int, luck: float) -> None:
    """Each pause is the schedule's, and up to a fifth more; after the last there is none."""
    again = retry_us(tries, 1_000, luck)
    if tries > len(BACKOFF_S):
        assert again is None
    else:
        assert again is not None
        pause_s = BACKOFF_S[tries - 1]
        assert pause_s <= (again - 1_000) / 1e6 <= 1.2 * pause_s


def test_a_secret_that_many_ask_for_at_once_is_made_once(tmp_path: Path) -> None:
    """Control: the name of the draft in write_secret. Runs of one tenant may end together, and each is told at once."""
    kept, begin = WebhookSecrets(tmp_path / "webhooks"), threading.Barrier(8)

    def ask(_: int) -> str:
        begin.wait()
        return kept.of(TenantId("acme"))

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(ask, range(8)))) == 1
    assert [path.name for path in (tmp_path / "webhooks").iterdir()] == ["acme"]
