"""What a secret looks like in text and in fields, and taking it out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_KEY = (
    r"(?:token|secret|password|passwd|passphrase|api[_-]?key|private[_-]?key|session[_-]?key|authorization|credentials?|cookie)"
)
_SECRET_NAME = re.compile(rf"{_KEY}$", re.IGNORECASE)
# Every repetition that could be tried again from many places has a bound, so that a hostile line costs linear time.
# What is a secret whatever stands round it.
_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\bsk-sov-[\w-]{1,512}"), f"sk-sov-{REDACTED}"),
    (re.compile(r"\bsk-[\w-]{16,512}"), f"sk-{REDACTED}"),
    (re.compile(r"\beyJ[\w-]{8,8192}\.[\w-]{1,8192}(?:\.[\w-]{0,8192})?"), REDACTED),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), REDACTED),
    (
        re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,16384}?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL),
        REDACTED,
    ),
)
_PATTERNS = (
    *_SECRETS,
    (re.compile(r"\b(Bearer|Basic)\s{1,8}[^\s\"',;]{1,8192}", re.IGNORECASE), rf"\1 {REDACTED}"),
    (re.compile(r"(://[^\s:/@]{0,256}):[^\s/@]{1,512}@"), rf"\1:{REDACTED}@"),
    (
        re.compile(
            rf"(\b[\w-]{{0,40}}{_KEY}[\"']?\s{{0,8}}[:=]\s{{0,8}})"
            # a value that another rule has already taken out keeps that rule's words
            rf"(?!(?:(?:Bearer|Basic) |sk-(?:sov-)?)?\[redacted\])"
            r"(?:\"(?:[^\"\\]|\\.){0,8192}\"|'(?:[^'\\]|\\.){0,8192}'|[^\s\"',;&}\]]{1,8192})",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
)


def holds_secret(text: str) -> bool:
    """Return whether something in `text` is a secret by its form: a key of a known kind, a token, a private key."""
    return any(pattern.search(text) for pattern, _ in _SECRETS)


def redact(text: str) -> str:
    """Return `text` with everything that looks like a secret replaced by "[redacted]"."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_field(name: str, value: Any) -> Any:
    """Return the value of a field, "[redacted]" if its name says that it is secret, else with its own texts redacted."""
    if _SECRET_NAME.search(name):
        return REDACTED
    if isinstance(value, Mapping):
        return {str(k): redact_field(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact_field("", v) for v in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))
