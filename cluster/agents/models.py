"""Which model an agent's `model` string names, and the chat model that answers for it.

`provider:model` is any provider of LangChain; `local:<name>` the OpenAI-compatible endpoint of this cluster;
`scripted:<script>` the deterministic model of `scripted_model.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from cluster.agents.scripted_model import ScriptedModel
from cluster.errors import ConfigurationError
from cluster.identity.secrets import Secret

REQUEST_TIMEOUT_S = 120.0
# Providers whose LangChain class takes these two by these names; others keep their own defaults.
_TAKE_TIMEOUT = {"openai", "azure_openai", "anthropic", "groq", "mistralai", "deepseek", "xai", "together", "fireworks"}


def build_model(
    model: str,
    *,
    local_model_url: str = "",
    script_dir: Path | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
    api_key: Secret | None = None,
) -> BaseChatModel:
    """Return the chat model that `model` ("provider:name") names.

    Takes the base URL of the local OpenAI-compatible endpoint (".../v1"), the folder of `<name>.json` scripts, the longest
    time of one model call in seconds, and the provider's key; without one LangChain looks for its usual variable.
    Raises ConfigurationError that says which package, key or setting is missing.
    """
    provider, colon, name = model.partition(":")
    if not colon or not provider or not name:
        raise ConfigurationError(
            f"The model {model[:80]!r} names no provider.", hint='Write it as "provider:model", such as "openai:gpt-5-mini".'
        )
    if provider == "scripted":
        return _scripted(name, script_dir)
    if provider == "local":
        return _local(name, local_model_url, timeout_s)
    return _provided(provider, name, timeout_s, api_key)


def _scripted(name: str, script_dir: Path | None) -> ScriptedModel:
    if name in ("ok", "echo", "steps"):
        return ScriptedModel(script=name)
    path = script_dir / f"{name}.json" if script_dir and name.replace("-", "").replace("_", "").isalnum() else None
    if path is None or not path.is_file():
        raise ConfigurationError(
            f"There is no script {name[:80]!r} for the scripted model.", hint="Scripts that are always there: ok, echo, steps."
        )
    try:
        steps = json.loads(path.read_bytes())
    except ValueError as e:
        raise ConfigurationError(f"The script {path} is not JSON: {e}") from None
    if not isinstance(steps, list) or not all(isinstance(s, dict) for s in steps):
        raise ConfigurationError(f"The script {path} is not a list of steps.")
    return ScriptedModel(script=name, steps=steps)


def _local(name: str, url: str, timeout_s: float) -> BaseChatModel:
    if not url:
        raise ConfigurationError(
            f"The agent's model local:{name[:80]} needs a local model, and none is served.",
            hint="Start the cluster with `sovereign up --local-model`, or set SOVEREIGN_LOCAL_MODEL_URL.",
        )
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    # No retries here: the caller's deadline decides, and a retried answer would be metered twice.
    return ChatOpenAI(
        model=name,
        base_url=url,
        api_key=SecretStr("local"),
        timeout=timeout_s,
        max_retries=0,
        stream_usage=True,
    )


def _provided(provider: str, name: str, timeout_s: float, api_key: Secret | None) -> BaseChatModel:
    from langchain.chat_models import init_chat_model
    from pydantic import SecretStr

    options: dict[str, Any] = {"timeout": timeout_s, "max_retries": 2} if provider in _TAKE_TIMEOUT else {}
    if api_key is not None:
        options["api_key"] = SecretStr(api_key.reveal())
    if provider in ("openai", "azure_openai"):
        options["stream_usage"] = True
    try:
        model: BaseChatModel = init_chat_model(name, model_provider=provider, **options)
        return model
    except ImportError as e:
        raise ConfigurationError(
            f"The model {provider}:{name[:80]} needs a package that is not installed: {e}",
            hint="Install LangChain's package of that provider on every node.",
        ) from None
    except Exception as e:  # each provider has its own class for a missing key or a wrong name
        raise ConfigurationError(
            f"The model {provider}:{name[:80]} cannot be set up: {str(e)[:300]}",
            hint="Check the provider's name, and that SOVEREIGN_MODEL_KEYS says where its API key is.",
        ) from None
