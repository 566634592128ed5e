"""How a failed model call is told: the provider's own words, bounded, without any secret in them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from cluster.errors import ModelFailedError, OutOfMemoryError, SovereignError

MAX_MESSAGE = 600
_SECRET = re.compile(
    r"""(?ix)
      \b(?:bearer|basic)\s+[\w.~+/=-]{8,}                               # Authorization values
    | \b(?:sk|pk|rk|gsk|xai|ghp|hf|AKIA|ASIA|AIza)[-_]?[\w-]{12,}         # the usual keys' shapes
    | \beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?                             # a JWT
    | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)                                    # user:password in a URL
    | (?:api[-_]?key|token|secret|password|authorization)["']?\s*[:=]\s*["']?(?:bearer\s+|basic\s+)?[^\s"',;&}]{4,}
    """
)


def secrets_of(model: BaseChatModel) -> tuple[str, ...]:
    """Return the secret values that `model` holds (its SecretStr fields), so that they can be struck out of its errors."""
    values = (getattr(model, name, None) for name in type(model).model_fields)
    found = (v.get_secret_value() for v in values if isinstance(v, SecretStr))
    return tuple(s for s in found if len(s) >= 8)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` with `secrets` and everything shaped like a credential replaced, cut to MAX_MESSAGE characters."""
    for secret in secrets:
        text = text.replace(secret, "[redacted]")
    text = _SECRET.sub("[redacted]", text[: MAX_MESSAGE * 4])
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def model_failure(error: Exception, model_name: str, secrets: Iterable[str]) -> SovereignError:
    """Return the platform's error for what a model call raised."""
    if isinstance(error, SovereignError):
        return error
    if isinstance(error, MemoryError):
        return out_of_memory()
    words = redact(str(error), secrets) or "no message"
    return ModelFailedError(f"The model {model_name} failed: {type(error).__name__}: {words}")


def out_of_memory() -> OutOfMemoryError:
    """Return the error of an agent whose allocation was refused."""
    return OutOfMemoryError(
        "The agent needed more memory than it declared, and the allocation was refused.",
        hint="Register it with a larger `memory` limit, or give it less to do at once.",
    )
