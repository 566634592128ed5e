"""Another issuer's keys: fetched over HTTPS, kept in memory, and used for a bounded time while the issuer is away.

Nobody waits for the network here: a fetch runs in a thread of its own, one at a time, and never sooner than
`REFETCH_US` after the one before, however many unknown key ids are asked for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Final
from urllib.parse import urlsplit

from cluster.admission.strict_json import parse_strict_json
from cluster.clock import Clock
from cluster.errors import ConfigurationError, FieldError
from cluster.identity.key_set import IssuerAwayError, TrustedIssuer, VerificationKey, read_key_set

log = logging.getLogger(__name__)

# Keys of this age are fetched again beside the calls that use them.
REFRESH_US: Final = 300_000_000
# An unknown key id has the keys fetched at once, but not again before this.
REFETCH_US: Final = 10_000_000
MAX_BYTES: Final = 256 << 10
TIMEOUT_S: Final = 5.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class RemoteKeySet:
    """The keys at one URL."""

    def __init__(
        self,
        url: str,
        issuer: TrustedIssuer,
        clock: Clock,
        *,
        algorithms: Collection[str],
        max_age_s: int,
        fetch: Callable[[str], bytes] | None = None,
    ) -> None:
        """Use the keys at `url`, those of the last good fetch for at most `max_age_s`; raises ConfigurationError.

        `fetch` returns the document at a URL, `fetch_jwks` unless given.
        """
        self._url = check_url(url)
        self._issuer = issuer
        self._clock = clock
        self._algorithms = frozenset(algorithms)
        self._max_age_us = max_age_s * 1_000_000
        self._fetch = fetch or fetch_jwks
        self._lock = Lock()
        self._keys: dict[str, VerificationKey] = {}
        # When the keys came and when they were last asked for, by the monotonic clock; None before the first time.
        self._fetched_us: int | None = None
        self._tried_us: int | None = None
        self._fetching: Future[None] | None = None

    def find(self, key_id: str) -> VerificationKey | None:
        """Return the key of that id, or None; raises IssuerAwayError with the fetch that would tell, if there is one."""
        now_us = self._clock.monotonic_us()
        age_us = None if self._fetched_us is None else now_us - self._fetched_us
        if age_us is None or age_us >= self._max_age_us:
            raise self._away(self._start(now_us))
        key = self._keys.get(key_id)
        if key is not None:
            if age_us >= REFRESH_US:
                self._start(now_us)
            return key
        if (fetch := self._start(now_us)) is not None:
            raise self._away(fetch)
        return None

    def _start(self, now_us: int) -> Future[None] | None:
        """Return the fetch that is under way, beginning one if it is time; None when it is not."""
        with self._lock:
            if self._fetching is not None:
                return self._fetching
            if self._tried_us is not None and now_us - self._tried_us < REFETCH_US:
                return None
            self._tried_us = now_us
            fetch = self._fetching = Future[None]()
            # From here on none of those who wait for it can cancel it for the others.
            fetch.set_running_or_notify_cancel()
        Thread(target=self._run, args=(fetch,), name="jwks-fetch", daemon=True).start()
        return fetch

    def _run(self, fetch: Future[None]) -> None:
        """Fetch once. What fails leaves the keys that were there."""
        keys: dict[str, VerificationKey] = {}
        why = "no key in it can be used here"
        try:
            document = parse_strict_json(self._fetch(self._url), max_bytes=MAX_BYTES)
            keys = read_key_set(document, self._issuer, self._algorithms)
        except Exception as e:  # whatever it is, the keys that are here go on until they are too old
            why = f"{type(e).__name__}: {e}"
        if not keys:
            log.warning("the keys of issuer %s can't be had: %s", self._issuer.issuer, why)
        with self._lock:
            if keys:
                self._keys, self._fetched_us = keys, self._clock.monotonic_us()
            self._fetching = None
        fetch.set_result(None)

    def _away(self, fetch: Future[None] | None) -> IssuerAwayError:
        error = IssuerAwayError(
            "Access tokens can't be checked now: the keys of their issuer are not here.",
            hint="Retry in a moment, or use an API key.",
            retry_after_s=REFETCH_US / 1_000_000,
        )
        error.fetch = fetch
        return error


def check_url(url: str) -> str:
    """Return `url`; raises ConfigurationError unless it is https, or http to this machine alone."""
    parts = urlsplit(url)
    plain = parts.scheme == "http" and parts.hostname in _LOOPBACK
    if (parts.scheme != "https" and not plain) or not parts.hostname or "@" in parts.netloc:
        wrong = FieldError("SOVEREIGN_OIDC_JWKS_URL", "must be an https:// URL, or http:// of this machine (127.0.0.1)")
        raise ConfigurationError("The issuer's keys have no place to be fetched from.", errors=[wrong])
    return url


def fetch_jwks(url: str) -> bytes:
    """Return the document at `url`, within bounds of size and time; raises for anything but a plain 200."""
    import httpx

    ends = time.monotonic() + TIMEOUT_S
    # Loopback is never reached through a proxy that the environment names.
    outside = urlsplit(url).scheme == "https"
    with (
        httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=outside) as client,
        client.stream("GET", url, headers={"accept": "application/json", "accept-encoding": "identity"}) as answer,
    ):
        if answer.status_code != 200:
            raise ValueError(f"the answer was {answer.status_code}")
        parts: list[bytes] = []
        size = 0
        # As it came: what is compressed could be small on the way and large here.
        for part in answer.iter_raw():
            size += len(part)
            if size > MAX_BYTES:
                raise ValueError(f"it is larger than {MAX_BYTES} bytes")
            if time.monotonic() > ends:
                raise TimeoutError(f"it took longer than {TIMEOUT_S:g} s")
            parts.append(part)
    return b"".join(parts)
