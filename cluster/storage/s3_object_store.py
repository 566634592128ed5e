"""Objects in an S3-compatible store that honours `If-None-Match: *`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.errors import ConfigurationError, InvalidRequestError, NotFoundError, StorageError
from cluster.identity.secrets import Secret
from cluster.storage.object_store import ObjectInfo, PutOutcome, check_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 10
# With standard back-off a call ends within about half a minute, whatever the store does.
ATTEMPTS = 3
# Of a store that has too much to do and does not say for how long.
THROTTLED_S = 1.0
_THROTTLED = {"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequests"}


class S3ObjectStore:
    """One bucket, or a prefix of it. Credentials are held by boto3 alone."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str = "",
        credentials: Sequence[Secret] = (),
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        """Speak to `endpoint` (empty: AWS) with `credentials`, key id and secret key; none: those of the usual AWS chain.

        Keys stand below `prefix`. Raises ConfigurationError; opens no connection.
        """
        self.bucket = bucket
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.endpoint = endpoint
        if self.prefix:
            check_key(self.prefix.rstrip("/"))
        config = Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": attempts},
            # A path, not a host name, for each bucket is what stores other than AWS understand.
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Newer boto3 adds checksums that older stores refuse; the SHA-256 of each object is sent by us.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=8,
        )
        try:
            key_id, secret_key = [c.reveal() for c in credentials] or (None, None)
            session = boto3.session.Session(aws_access_key_id=key_id, aws_secret_access_key=secret_key)
            region = session.region_name or "us-east-1"
            self._client: S3Client = session.client("s3", region_name=region, endpoint_url=endpoint or None, config=config)
        except (BotoCoreError, ValueError) as e:
            raise ConfigurationError(f"No S3 client for {self.describe()}: {e}.", hint="Check SOVEREIGN_S3_ENDPOINT.") from e

    def put_if_absent(self, key: str, data: bytes, *, sha256: str) -> PutOutcome:
        """PUT with `If-None-Match: *`; see ObjectStore."""
        full = self.prefix + check_key(key)
        try:
            digest = base64.b64encode(binascii.unhexlify(sha256)).decode()
        except ValueError:
            raise InvalidRequestError(f"{sha256[:80]!r} is not a SHA-256 in hex.") from None
        try:
            self._client.put_object(
                Bucket=self.bucket, Key=full, Body=data, IfNoneMatch="*", ChecksumSHA256=digest, Metadata={"sha256": sha256}
            )
        except ClientError as e:
            if _status(e) != 412:
                raise self._error("PUT", key, e) from e
            return self._resolve(key, sha256, int(e.response["ResponseMetadata"].get("RetryAttempts", 0)))
        except BotoCoreError as e:
            raise self._error("PUT", key, e) from e
        return PutOutcome.CREATED

    def get(self, key: str) -> bytes:
        """GET the object; see ObjectStore."""
        full = self.prefix + check_key(key)
        try:
            return self._client.get_object(Bucket=self.bucket, Key=full)["Body"].read()
        except ClientError as e:
            if _status(e) == 404 and e.response["Error"].get("Code") != "NoSuchBucket":
                raise NotFoundError(f"There is no object {key} in {self.describe()}.") from None
            raise self._error("GET", key, e) from e
        except BotoCoreError as e:
            raise self._error("GET", key, e) from e

    def head(self, key: str) -> ObjectInfo | None:
        """HEAD the object; see ObjectStore."""
        full = self.prefix + check_key(key)
        try:
            answer = self._client.head_object(Bucket=self.bucket, Key=full)
        except ClientError as e:
            if _status(e) == 404:
                return None
            raise self._error("HEAD", key, e) from e
        except BotoCoreError as e:
            raise self._error("HEAD", key, e) from e
        return ObjectInfo(key, answer["ContentLength"], answer["Metadata"].get("sha256"))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List page by page; see ObjectStore."""
        wanted: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self.prefix + prefix}
        if after:
            wanted["StartAfter"] = self.prefix + after
        try:
            for page in self._client.get_paginator("list_objects_v2").paginate(**wanted):
                for found in page.get("Contents", ()):
                    yield ObjectInfo(found["Key"].removeprefix(self.prefix), found["Size"])
        except (ClientError, BotoCoreError) as e:
            raise self._error("LIST", prefix, e) from e

    def describe(self) -> str:
        """Return the place as a URL, and the endpoint when it is not AWS."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + (f" at {self.endpoint}" if self.endpoint else "")

    def _resolve(self, key: str, sha256: str, retries: int) -> PutOutcome:
        """Tell our own object from another's after a 412.

        boto3 retries a PUT whose answer was lost, and is then refused by what it wrote itself.
        """
        there = self.head(key)
        if there is None:
            # Deleted in between, or a store that answers nonsense: neither is a proof that it is stored.
            raise StorageError(f"{self.describe()} says that {key} exists and does not exist.")
        return PutOutcome.CREATED if retries and there.sha256 == sha256 else PutOutcome.EXISTS

    def _error(self, verb: str, key: str, cause: Exception) -> StorageError:
        hint = "Nothing is dropped: it is tried again."
        if isinstance(cause, ClientError) and _status(cause) in {401, 403, 404}:
            hint = f"Check that the bucket {self.bucket} exists and that the credentials (AWS_*) may use it. {hint}"
        detail = f"{verb} {key} in {self.describe()} failed: {cause}."
        return StorageError(detail, hint=hint, retry_after_s=_asked_s(cause))


def _asked_s(cause: Exception) -> float | None:
    """Return for how long the store wants not to be asked, or None when it said nothing of that kind."""
    if not isinstance(cause, ClientError):
        return None
    said = str(cause.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", ""))
    if said.isascii() and said.isdigit() and len(said) < 7:
        return float(said)
    throttled = cause.response.get("Error", {}).get("Code") in _THROTTLED or _status(cause) == 429
    return THROTTLED_S if throttled else None


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
