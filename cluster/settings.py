"""Everything that an operator may set, read from the environment in this one file (`SOVEREIGN_*`).

Settings, never live clients, cross a process boundary: `to_json` and `from_json` carry them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cluster.errors import ConfigurationError, FieldError
from cluster.identity.ids import GRAMMAR
from cluster.identity.secrets import NamedSecretReferences, SecretReference

PROJECT_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """One cluster's settings. Durations are seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="SOVEREIGN_", env_ignore_empty=True, frozen=True, extra="ignore")

    home: Path = Field(Path(".sovereign"), description="Folder of all state of this cluster.")
    host: str = Field("127.0.0.1", description="Address that every listener binds; anything but loopback needs `expose`.")
    expose: bool = Field(False, description="Allow a `host` that is not loopback. Without it start is refused.")
    http_port: int = Field(8080, ge=0, le=65535, description="Port of the HTTP way in; the next free one is taken if it is busy.")
    ray_port: int = Field(0, ge=0, le=65535, description="Port of Ray's control store, which other nodes join; 0 means any.")
    node: str = Field(
        "",
        pattern=f"^({GRAMMAR})?$",
        description="Name of a node that joined; empty on the node that `up` starts. Set by `join` for its processes.",
    )
    node_labels: str = Field(
        "", description="Labels of this node that agents may ask for: `name=value`, separated by commas (nodes.md)."
    )
    num_cpus: int = Field(0, ge=0, description="CPUs that agents may share on this node; 0 means all of the machine's.")
    memory_bytes: int = Field(0, ge=0, description="Memory that agents may share on this node; 0 means 70 % of the machine's.")
    gateway_min_replicas: int = Field(
        1, ge=0, le=32, description="Gateway processes that are always there; with 0 the first call after a lull waits for one."
    )
    gateway_max_replicas: int = Field(
        0,
        ge=0,
        le=32,
        description="Gateway processes at most; 0 means one for every two CPUs of the machine, and at least the minimum.",
    )
    gateway_target_queue: int = Field(
        128,
        ge=1,
        description="Calls under way for which there is one gateway; with more of them, or when it is slow, one is added.",
    )
    gateway_down_delay_s: float = Field(
        30.0, ge=0, description="How long there must be too many gateways before one is taken away."
    )
    warm_pool: int = Field(2, ge=0, le=64, description="Idle worker processes kept ready for agents that wake.")
    idle_s: float = Field(
        900.0, gt=0, description="An agent that had no call for so long gives its process back; its next call wakes it."
    )
    wakes_at_once: int = Field(4, ge=1, description="Agents that start at the same time on this cluster; others wait their turn.")
    queue_limit: int = Field(
        512, ge=1, description="Calls that one gateway replica holds at once, under way or waiting; one more is answered 429."
    )
    gateway_places: int = Field(
        256, ge=1, description="Calls that one gateway replica has under way at once; others wait, each tenant for its turn."
    )
    runs_at_once: int = Field(
        64, ge=1, description="Runs that one gateway carries at once; others wait. A run is a call that outlives its connection."
    )
    runs_waiting: int = Field(1000, ge=1, description="Runs of one tenant that have not ended; one more is answered 429.")
    runs_kept: int = Field(10_000, ge=1, description="Runs of one tenant that have ended and are kept; the oldest go.")
    runs_keep_s: int = Field(7 * 86400, ge=60, description="How long a run that has ended is kept.")
    webhook_origins: str = Field(
        "",
        description="Origins such as `http://10.0.0.5:8080`, separated by commas, that webhooks may go to beside public HTTPS hosts.",
    )
    idempotency_keep_s: int = Field(
        86400, ge=600, description="How long an answer is kept for calls that are sent again with the same Idempotency-Key."
    )
    call_timeout_s: float = Field(120.0, gt=0, description="Deadline of a call that names none.")
    max_body_bytes: int = Field(1 << 20, ge=1024, description="Largest HTTP body accepted.")
    public_url: str = Field(
        "", description="URL under which clients reach the API, and issuer of its access tokens; empty means `http://host:port`."
    )
    token_life_s: int = Field(
        900, ge=1, le=900, description="Life of an access token of this cluster, unless it is asked for less."
    )
    token_audience: str = Field("sovereign", min_length=1, description="Audience of this cluster's own access tokens.")
    token_algorithms: str = Field(
        "Ed25519,EdDSA,ES256,ES384,PS256,RS256", description="Signatures that access tokens may have, separated by commas."
    )
    token_leeway_s: int = Field(5, ge=0, le=60, description="How far an issuer's clock may be ahead of ours.")
    oidc_issuer: str = Field(
        "", description="Another issuer whose access tokens are taken, as its tokens name it; empty means none."
    )
    oidc_audience: str = Field("", description="Audience that tokens of that issuer must have.")
    oidc_jwks_url: str = Field("", description="Where that issuer's public keys are: https, or http on this machine.")
    oidc_tenant_claim: str = Field("tenant", min_length=1, description="Claim of that issuer's tokens that names the tenant.")
    oidc_project_claim: str = Field(
        "project", min_length=1, description="Claim that names the project; `default` where it is missing."
    )
    oidc_keys_max_age_s: int = Field(
        3600, ge=60, le=86400, description="How long that issuer's keys are used while it is away; then its tokens are refused."
    )
    body_timeout_s: float = Field(30.0, gt=0, description="How long a body may take to come; then the request is answered 408.")
    lake_url: str = Field(
        "", description="Where usage and audit go: a `file://` URL or `s3://bucket/prefix`; empty means `<home>/lake`."
    )
    s3_endpoint: str = Field(
        "", description="Endpoint of an S3-compatible store; empty means AWS. Credentials come from the usual AWS variables."
    )
    s3_access_key: SecretReference = Field(
        "", description="Where the store's access key id is, instead of the usual AWS variables: a reference to a secret."
    )
    s3_secret_key: SecretReference = Field("", description="Where the store's secret access key is: a reference to a secret.")
    seal_interval_s: float = Field(
        1.0, gt=0, description="How long facts wait in journals before they are sealed into a Parquet segment."
    )
    curate_interval_s: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="Seconds between curating usage into `usage/events/`; 0: only by `sovereign lake curate`.",
    )
    journal_sync_ms: int = Field(50, ge=1, description="Longest time until a written fact is forced to disk.")
    journal_limit_bytes: int = Field(
        4 << 30, ge=1, description="Most bytes of facts that may wait for the lake on this node; at it nothing new is admitted."
    )
    disk_reserve_bytes: int = Field(
        256 << 20, ge=0, description="Free space of the journals' disk at which nothing new is admitted, kept for what runs."
    )
    policy_dir: Path = Field(PROJECT_ROOT / "policies", description="Folder of the Rego policies and their data.")
    policy_bundle: Path | None = Field(
        None,
        description="A signed policy bundle to begin with, instead of the folder, which the box signs itself; its key must be pinned.",
    )
    policy_engine: Literal["regorus", "opa"] = Field(
        "regorus", description="What evaluates the policies: regorus in processes of the governor's own, or an OPA server."
    )
    opa_url: str = Field(
        "http://127.0.0.1:8181",
        description="The OPA server of this cluster alone, which gets the policies from the governor; https, or loopback.",
    )
    opa_token: SecretReference = Field("", description="Where the bearer token for the OPA server is: a reference to a secret.")
    sandbox: Literal["auto", "bubblewrap", "process"] = Field(
        "auto", description="How tools are confined; auto takes bubblewrap where it works."
    )
    search_url: str = Field(
        "", description="A SearXNG-compatible search endpoint for the web_search tool; empty means the folder below."
    )
    search_corpus: Path = Field(
        PROJECT_ROOT / "docs",
        description="Folder of text files that web_search looks in when there is no `search_url`; unless set, this product's docs.",
    )
    local_model: bool = Field(False, description="Serve the small local language model on this node, behind `local:` models.")
    local_model_url: str = Field(
        "", description="OpenAI-compatible endpoint behind `local:` models; set by itself when `local_model` is on."
    )
    model_keys: NamedSecretReferences = Field(
        "",
        description="Where the API keys of model providers are: `provider=reference`, separated by commas; others have the usual "
        "variables.",
    )
    otlp_endpoint: str = Field(
        "",
        description="OpenTelemetry collector that takes traces over HTTP, such as `http://127.0.0.1:4318`; empty means no tracing.",
    )
    otlp_headers: SecretReference = Field(
        "", description="Where the headers for the collector are, as `name=value`, separated by commas: a reference to a secret."
    )
    trace_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests that are traced, of those whose client does not say so itself by `traceparent`.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least severe log line that is written.")

    @classmethod
    def load(cls, **overrides: object) -> Settings:
        """Read the environment, with `overrides` on top; raises ConfigurationError that names each wrong setting."""
        try:
            settings = cls(**overrides)  # type: ignore[arg-type]  # pydantic checks each override
        except ValidationError as e:
            fields = [FieldError("SOVEREIGN_" + ".".join(map(str, x["loc"])).upper(), x["msg"]) for x in e.errors()]
            raise ConfigurationError("A setting is wrong.", errors=fields) from None
        # The processes that read these stand in another folder than the operator.
        paths = {name: getattr(settings, name).expanduser().absolute() for name in ("home", "policy_dir", "search_corpus")}
        if settings.policy_bundle is not None:
            paths["policy_bundle"] = settings.policy_bundle.expanduser().absolute()
        return settings.model_copy(update=paths)

    def to_json(self) -> str:
        """Return these settings as JSON for another process."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return the settings that `to_json` wrote; the environment is not read."""
        return cls.model_construct(**dict(_Plain(**json.loads(text))))

    @classmethod
    def of_this_node(cls, text: str) -> Settings:
        """Return the cluster's settings that `to_json` wrote, with this node's own name, folder and address.

        Those come from the environment, where the node's start put them for each of its processes; where they are
        missing, the document's hold.
        """
        here = {name: os.environ.get(f"SOVEREIGN_{name.upper()}", "") for name in ("home", "host", "node")}
        settings = cls.from_json(text)
        return cls.from_json(json.dumps(settings.model_dump(mode="json") | {k: v for k, v in here.items() if v}))

    def of_node(self, node: str) -> Settings:
        """Return these settings as the node of that name has them, as far as its folders go; empty for the one of `up`."""
        return self.model_copy(update={"node": node})

    @property
    def most_gateways(self) -> int:
        """The gateway processes that there may be at once."""
        return max(self.gateway_max_replicas or (os.cpu_count() or 1) // 2, self.gateway_min_replicas, 1)

    @property
    def webhook_origin_list(self) -> tuple[str, ...]:
        """The origins that webhooks may go to though they are private, or not HTTPS."""
        return tuple(origin for origin in self.webhook_origins.replace(" ", "").split(",") if origin)

    @property
    def places(self) -> int:
        """The calls that one gateway may have under way at once: no more than half of what it holds, where that is little."""
        return min(self.gateway_places, (self.queue_limit + 1) // 2)

    @property
    def run_dir(self) -> Path:
        """The short folder (0700) of this node's sockets; a Unix socket path has 107 bytes in all."""
        digest = hashlib.sha256(os.fsencode(self.node_dir)).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"sov{os.getuid()}-{digest}"

    @property
    def nodes_dir(self) -> Path:
        """The folders of the nodes that joined, by name."""
        return self.home / "nodes"

    @property
    def node_dir(self) -> Path:
        """What belongs to this node alone: the home itself on the node that `up` starts, so that one node has no folder more."""
        return self.nodes_dir / self.node if self.node else self.home

    @property
    def state_path(self) -> Path:
        """What is running: written by `up`, read by everything that looks for the cluster."""
        return self.home / "cluster.json"

    @property
    def node_state_path(self) -> Path:
        """What runs of a node that joined: written by `join`."""
        return self.node_dir / "node.json"

    @property
    def journal_dir(self) -> Path:
        """This node's journals, one folder per writer; its shipper ships them and no others."""
        return self.node_dir / "journal"

    @property
    def lease_dir(self) -> Path:
        """The journals of this node's processes that hold leases on budgets; they are not shipped."""
        return self.node_dir / "leases"

    @property
    def coordination_path(self) -> Path:
        """The SQLite file behind the embedded coordination port."""
        return self.home / "coordination.sqlite"

    @property
    def runs_path(self) -> Path:
        """The SQLite file of the runs, which all gateways share."""
        return self.home / "runs.sqlite"

    @property
    def answers_path(self) -> Path:
        """The SQLite file of answers that are kept by Idempotency-Key, which all gateways share."""
        return self.home / "answers.sqlite"

    @property
    def checkpoint_dir(self) -> Path:
        """Agents' conversations, one SQLite file per agent."""
        return self.home / "checkpoints"

    @property
    def secret_dir(self) -> Path:
        """Folder (0700) of the files (0600) that hold secrets."""
        return self.home / "secrets"

    @property
    def policy_home(self) -> Path:
        """Folder of what is known of policy bundles: pinned keys, and those that were accepted."""
        return self.home / "policy"

    @property
    def policy_keys(self) -> Path:
        """Folder of the public keys, pinned by an operator, that may sign policy."""
        return self.policy_home / "keys"

    @property
    def policy_key(self) -> Path:
        """The private key by which this box signs its own policy folder; not there when bundles come from elsewhere."""
        return self.secret_dir / "policy-key.pem"

    @property
    def log_dir(self) -> Path:
        """JSON logs of the platform's processes."""
        return self.home / "logs"

    @property
    def metrics_dir(self) -> Path:
        """The files that the processes of this node merge their metrics through."""
        return self.node_dir / "metrics"

    @property
    def lake(self) -> str:
        """The lake's URL."""
        return self.lake_url or (self.home / "lake").as_uri()


class _Plain(Settings):
    """The same fields without any source but the document."""

    @classmethod
    def settings_customise_sources(  # type: ignore[override]  # the other sources are left out on purpose
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **others: object
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)
