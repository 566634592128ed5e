"""The one place that names what stands behind the ports, each imported only when the settings choose it."""

from __future__ import annotations

import secrets
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from cluster.clock import SystemClock
from cluster.coordination.journals import register_journal
from cluster.errors import ConfigurationError, FieldError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.roles import Scope
from cluster.identity.secret_file import write_secret
from cluster.identity.secrets import named_references, usual_secrets
from cluster.journal.fact import Fact, Stream
from cluster.journal.gate import JournalGate
from cluster.journal.writer import JournalWriter
from cluster.settings import Settings

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

    from cluster.admission.bundle import PolicyBundle
    from cluster.admission.bundle_keys import KeyRing
    from cluster.admission.bundle_opener import BundleOpener
    from cluster.admission.policy_engine import PolicyEngine
    from cluster.admission.registrar import Registrar
    from cluster.agents.brain import Brain
    from cluster.agents.delegation import Peers
    from cluster.agents.middleware import OnRefusal
    from cluster.agents.record import AgentRecord
    from cluster.agents.sandbox import Sandbox
    from cluster.coordination.coordination import Coordination
    from cluster.identity.authentication import Authenticator
    from cluster.identity.authorization_server import AuthorizationServer, Record
    from cluster.identity.embedded_key_set import EmbeddedKeySet
    from cluster.identity.key_set import KeySet, TrustedIssuer
    from cluster.identity.token_verifier import TokenVerifier
    from cluster.lake.curation.curator import Curator
    from cluster.lake.ship import Shipper
    from cluster.runs.answers import AnswerStore
    from cluster.runs.run_store import RunStore
    from cluster.storage.object_store import ObjectStore

# The last fact of a call has some 1,000 bytes, with what its model's provider said beside the counts.
FINAL_BYTES = 4096
# What `up` signs for the governor, in the policy's folder of the home.
START_BUNDLE = "start.tar"
# Small models answer far better with any instructions than with none.
DEFAULT_INSTRUCTIONS = "You are a helpful assistant."


def open_object_store(settings: Settings) -> ObjectStore:
    """Return the store of the lake at `settings.lake`; raises ConfigurationError for a URL that names none."""
    url = urlsplit(settings.lake)
    if url.scheme == "file" and url.netloc in {"", "localhost"} and url.path:
        from cluster.storage.local_object_store import LocalObjectStore

        return LocalObjectStore(Path(unquote(url.path)))
    if url.scheme == "s3" and url.netloc:
        from cluster.storage.s3_object_store import S3ObjectStore

        if bool(settings.s3_access_key) != bool(settings.s3_secret_key):
            raise ConfigurationError(
                "The lake's store has half of its credentials.", hint="Set SOVEREIGN_S3_ACCESS_KEY and SOVEREIGN_S3_SECRET_KEY."
            )
        references = [r for r in (settings.s3_access_key, settings.s3_secret_key) if r]
        credentials = [usual_secrets().resolve(r) for r in references]
        return S3ObjectStore(url.netloc, url.path, endpoint=settings.s3_endpoint, credentials=credentials)
    raise ConfigurationError(
        "The lake has no place.",
        errors=[FieldError("SOVEREIGN_LAKE_URL", f"must be file:///folder or s3://bucket/prefix; got {settings.lake!r}")],
    )


def open_coordination(settings: Settings) -> Coordination:
    """Return the store that this cluster agrees through; raises UnavailableError when it can't be opened."""
    from cluster.coordination.sqlite_coordination import SqliteCoordination

    return SqliteCoordination(settings.coordination_path)


def open_run_store(settings: Settings) -> RunStore:
    """Return the runs of this cluster; raises UnavailableError when they can't be opened."""
    from cluster.runs.run_store import Bounds
    from cluster.runs.sqlite_run_store import SqliteRunStore

    bounds = Bounds(unfinished=settings.runs_waiting, ended=settings.runs_kept, keep_us=settings.runs_keep_s * 1_000_000)
    return SqliteRunStore(settings.runs_path, bounds)


def open_answers(settings: Settings) -> AnswerStore:
    """Return the answers that are kept by Idempotency-Key; raises UnavailableError when they can't be opened."""
    from cluster.runs.sqlite_answers import AnswerBounds, SqliteAnswers

    return SqliteAnswers(settings.answers_path, AnswerBounds(keep_us=settings.idempotency_keep_s * 1_000_000))


def build_curator(settings: Settings, *, max_plan_rows: int | None = None) -> Curator:
    """Return what makes curated events of the lake's raw usage, `max_plan_rows` at a time."""
    from cluster.lake.curation.curator import Curator
    from cluster.lake.curation.planner import MAX_PLAN_ROWS

    return Curator(open_object_store(settings), clock=SystemClock(), max_plan_rows=max_plan_rows or MAX_PLAN_ROWS)


def build_brain(
    settings: Settings, record: AgentRecord, *, egress_hosts: tuple[str, ...], on_refusal: OnRefusal, peers: Peers | None = None
) -> Brain:
    """Return what answers an agent's calls: its model, its granted tools in the sandbox, its conversations.

    `egress_hosts` are the hosts that its tools may fetch from, `peers` the agents that it may hand work to. Raises
    ConfigurationError for a model that can't be had.
    """
    from cluster.agents.brain import Brain
    from cluster.agents.conversation_locks import ConversationLocks
    from cluster.agents.models import build_model
    from cluster.agents.sqlite_checkpointer import SqliteCheckpointStore

    spec, conversations = record.spec, checkpoint_path(settings, record)
    reference = named_references(settings.model_keys).get(spec.model.partition(":")[0])
    api_key = usual_secrets().resolve(reference) if reference else None
    return Brain(
        build_model(spec.model, local_model_url=settings.local_model_url, api_key=api_key),
        _build_tools(settings, record, egress_hosts, peers),
        instructions=spec.instructions or DEFAULT_INSTRUCTIONS,
        max_iterations=spec.max_iterations,
        model_name=spec.model,
        checkpointer=SqliteCheckpointStore(conversations),
        locks=ConversationLocks(conversations.with_name(conversations.name + ".lock")) if spec.max_replicas > 1 else None,
        on_refusal=on_refusal,
    )


def checkpoint_path(settings: Settings, record: AgentRecord) -> Path:
    """Return where the agent's conversations are kept: by its registration, because its name may be used again."""
    return settings.checkpoint_dir / record.tenant / f"{record.spec.agent_id}-{record.decision_id}.sqlite"


def _build_tools(settings: Settings, record: AgentRecord, egress_hosts: tuple[str, ...], peers: Peers | None) -> list[BaseTool]:
    if not record.tools:
        return []
    from cluster.agents.catalogue import ToolSettings, build_tools
    from cluster.agents.delegation import ASK_AGENT, ask_agent_tool
    from cluster.agents.egress import EgressPolicy
    from cluster.agents.sandbox import ToolLimits

    asking = [ask_agent_tool(peers)] if peers is not None and ASK_AGENT in record.tools else []
    return asking + build_tools(
        [name for name in record.tools if name != ASK_AGENT],
        sandbox=open_sandbox(settings.sandbox, probed=settings.sandbox != "auto"),
        limits=ToolLimits.within(record.spec.resources.memory_bytes),
        egress=EgressPolicy(hosts=egress_hosts),
        settings=ToolSettings(search_url=settings.search_url, search_corpus=settings.search_corpus),
    )


def choose_sandbox(settings: Settings) -> Settings:
    """Return the settings with the sandbox that works here in the place of "auto", so that no agent has to probe again.

    Raises ConfigurationError when bubblewrap was asked for and does not work; emits SandboxWeakWarning when tools will
    run in a plain process.
    """
    kind = "bubblewrap" if open_sandbox(settings.sandbox).strength == "strong" else "process"
    return settings.model_copy(update={"sandbox": kind})


def open_sandbox(kind: Literal["auto", "bubblewrap", "process"] = "auto", *, probed: bool = False) -> Sandbox:
    """Return the sandbox of `kind`; "auto" is bubblewrap where a probe shows that it works.

    The probe starts a process, once in each of ours. With `probed` the caller says that another process of this node has
    seen bubblewrap work; should it fail after all, the tools fail, and do not run unconfined.
    Raises ConfigurationError when bubblewrap was asked for and does not work, and emits SandboxWeakWarning when tools
    will run in a plain process.
    """
    from cluster.agents.bubblewrap_sandbox import BubblewrapSandbox, probe
    from cluster.agents.process_sandbox import ProcessSandbox
    from cluster.agents.sandbox import SandboxWeakWarning

    why_not = "" if kind == "process" or probed else probe()
    if kind != "process" and not why_not:
        return BubblewrapSandbox()
    if kind == "bubblewrap":
        raise ConfigurationError(
            f"Tools cannot be confined by bubblewrap: {why_not}",
            hint="Install the package `bubblewrap` and allow unprivileged user namespaces, or set SOVEREIGN_SANDBOX=process.",
        )
    warnings.warn(
        "Tools run in a plain process with limits and a system call filter, but with this user's view of the file system"
        f"{': bubblewrap ' + why_not if why_not else ''}. Do not run tools that you did not read.",
        SandboxWeakWarning,
        stacklevel=2,
    )
    return ProcessSandbox()


def build_authenticator(settings: Settings) -> Authenticator:
    """Return what finds out who asks over HTTP, by API key or access token, of active tenants; raises ConfigurationError."""
    from cluster.admission.active_tenants import ActiveTenants
    from cluster.identity.api_keys import ApiKeyAuthenticator
    from cluster.identity.revocations import Revocations
    from cluster.identity.token_authentication import TokenAuthenticator

    coordination, clock = open_coordination(settings), SystemClock()
    api_keys = ApiKeyAuthenticator(coordination, clock)
    verifier = _token_verifier(settings, signing_keys(settings))
    tokens = TokenAuthenticator(api_keys, verifier, Revocations(coordination, clock), clock)
    return ActiveTenants(tokens, coordination, clock)


def build_authorization_server(settings: Settings, record: Record) -> AuthorizationServer:
    """Return the embedded issuer's side of OAuth, for clients of active tenants; `record` writes its facts."""
    from cluster.admission.active_tenants import ActiveTenants
    from cluster.identity.api_keys import ApiKeyAuthenticator
    from cluster.identity.authorization_server import AuthorizationServer
    from cluster.identity.revocations import Revocations
    from cluster.identity.token_issuer import TokenIssuer

    coordination, clock, keys, ours = open_coordination(settings), SystemClock(), signing_keys(settings), _ours(settings)
    api_keys = ActiveTenants(ApiKeyAuthenticator(coordination, clock), coordination, clock)
    return AuthorizationServer(
        ours,
        api_keys=api_keys,
        require_active=api_keys.require,
        keys=keys,
        tokens=TokenIssuer(keys, ours, clock, life_s=settings.token_life_s),
        verifier=_token_verifier(settings, keys),
        revocations=Revocations(coordination, clock),
        clock=clock,
        record=record,
    )


def signing_keys(settings: Settings) -> EmbeddedKeySet:
    """Return the keys of this cluster's own access tokens, made where there are none yet."""
    from cluster.identity.embedded_key_set import EmbeddedKeySet

    return EmbeddedKeySet(settings.secret_dir / "token-keys.json", _ours(settings), SystemClock())


def record_rotation(settings: Settings) -> None:
    """Write to disk that the signing key is about to be rotated, in a journal of this process."""
    from cluster.journal.audit_event import AuditAction, AuditEvent, AuditOutcome

    event = AuditEvent.new(SystemClock(), AuditAction.SIGNING_KEY_ROTATE, AuditOutcome.ALLOWED, actor="operator")
    with open_journal(settings, process_writer_id("command")) as journal:
        journal.append(Fact(Stream.AUDIT, event.to_body()))
        journal.sync()


def _ours(settings: Settings) -> TrustedIssuer:
    from cluster.identity.key_set import TrustedIssuer

    url = (settings.public_url or f"http://{settings.host}:{settings.http_port}").rstrip("/")
    return TrustedIssuer(url, settings.token_audience, ours=True)


def _token_verifier(settings: Settings, keys: EmbeddedKeySet) -> TokenVerifier:
    """Return what checks tokens of this cluster, and of another issuer where one is set; raises ConfigurationError."""
    from cluster.identity.key_set import ALGORITHMS, TrustedIssuer
    from cluster.identity.remote_key_set import RemoteKeySet
    from cluster.identity.token_verifier import TokenVerifier

    algorithms = [name for name in settings.token_algorithms.replace(" ", "").split(",") if name]
    if not algorithms or (unknown := sorted(set(algorithms) - set(ALGORITHMS))):
        wrong = f"may name {', '.join(ALGORITHMS)}, at least one; got {', '.join(unknown) if algorithms else 'none'}"
        raise ConfigurationError(
            "Access tokens have no signature that is taken.", errors=[FieldError("SOVEREIGN_TOKEN_ALGORITHMS", wrong)]
        )
    key_sets: list[KeySet] = [keys]
    if settings.oidc_issuer:
        if not settings.oidc_audience:
            missing = FieldError(
                "SOVEREIGN_OIDC_AUDIENCE", "is needed with SOVEREIGN_OIDC_ISSUER: who else's tokens would be taken?"
            )
            raise ConfigurationError("The issuer's tokens have no audience.", errors=[missing])
        theirs = TrustedIssuer(
            settings.oidc_issuer, settings.oidc_audience, settings.oidc_tenant_claim, settings.oidc_project_claim
        )
        key_sets.append(
            RemoteKeySet(
                settings.oidc_jwks_url, theirs, SystemClock(), algorithms=algorithms, max_age_s=settings.oidc_keys_max_age_s
            )
        )
    return TokenVerifier(key_sets, SystemClock(), algorithms=algorithms, leeway_s=settings.token_leeway_s)


def ensure_first_api_key(settings: Settings) -> None:
    """Make the administrator's key of the default tenant, once, and keep it where only the owner of the home can read it."""
    from cluster.identity.api_keys import create_key

    path = settings.secret_dir / "api-key"
    if path.exists():
        return
    coordination = open_coordination(settings)
    try:
        text, _ = create_key(
            coordination, SystemClock(), tenant=TenantId("default"), project=ProjectId("default"), scopes=frozenset(Scope)
        )
    finally:
        coordination.close()
    write_secret(path, text)


def build_registrar(settings: Settings) -> Registrar:
    """Begin as the governor: a new epoch fences off every earlier one, and its journal is registered before its first fact.

    Raises ConfigurationError for a policy that can't be taken, before any earlier governor is fenced off.
    """
    from cluster.admission.bundle_shelf import BundleShelf
    from cluster.admission.bundle_start import accept_offered, first_policy, offered_bundle
    from cluster.admission.policy_in_force import PolicyInForce
    from cluster.admission.registrar import WRITER_ID, Registrar

    coordination = open_coordination(settings)
    try:
        opener, shelf = open_bundles(settings), BundleShelf(settings.policy_home / "bundles")
        offered = offered_bundle(settings.policy_bundle or settings.policy_home / START_BUNDLE)
        policy = PolicyInForce(first_policy(coordination, opener, shelf, offered))
        journal = open_journal(settings, WRITER_ID)
    except BaseException:
        coordination.close()
        raise
    registrar = Registrar(
        coordination,
        policy,
        journal,
        opener=opener,
        shelf=shelf,
        clock=SystemClock(),
        epoch=journal.epoch,
        node=node_name(settings),
        journal_dir=settings.journal_dir,
    )
    try:
        accept_offered(coordination, registrar.bundles, offered)
    except BaseException:
        registrar.close()
        raise
    return registrar


def sign_policies(settings: Settings) -> None:
    """Sign the policy folder of this box for its start, unless a bundle is given instead; see `bundle_start.sign_folder`."""
    from cluster.admission.bundle_shelf import BundleShelf
    from cluster.admission.bundle_start import sign_folder

    if settings.policy_bundle is not None:
        return
    coordination = open_coordination(settings)
    try:
        sign_folder(
            settings.policy_dir,
            settings.policy_home / START_BUNDLE,
            key_path=settings.policy_key,
            ring_dir=settings.policy_home / "box-key",
            shelf=BundleShelf(settings.policy_home / "bundles"),
            coordination=coordination,
            clock=SystemClock(),
        )
    finally:
        coordination.close()


def policy_ring(settings: Settings) -> KeyRing:
    """Return the keys that may sign policy: those pinned, and the box's own unless bundles come from elsewhere."""
    from cluster.admission.bundle_keys import KeyRing

    box = [] if settings.policy_bundle is not None else [settings.policy_home / "box-key"]
    return KeyRing.load(settings.policy_keys, *box)


def open_bundles(settings: Settings) -> BundleOpener:
    """Return what opens policy bundles, by the keys that are pinned when it does."""
    from cluster.admission.bundle_opener import BundleOpener

    # Tried by the embedded engine also where OPA decides: OPA gets nothing that was not found good.
    elsewhere = partial(open_policy_engine, settings) if settings.policy_engine != "regorus" else None
    return BundleOpener(lambda: policy_ring(settings), embedded_policy_engine, elsewhere)


def open_policy_engine(settings: Settings, bundle: PolicyBundle) -> PolicyEngine:
    """Return what evaluates `bundle`; raises ConfigurationError when it can't be taken."""
    if settings.policy_engine == "opa":
        from cluster.admission.opa_policy_engine import OpaPolicyEngine

        token = usual_secrets().resolve(settings.opa_token) if settings.opa_token else None
        return OpaPolicyEngine(bundle, settings.opa_url, token=token)
    return embedded_policy_engine(bundle)


def embedded_policy_engine(bundle: PolicyBundle) -> PolicyEngine:
    """Return the embedded engine over `bundle`, whatever the settings choose; raises ConfigurationError."""
    from cluster.admission.regorus_policy_engine import RegorusPolicyEngine

    return RegorusPolicyEngine(bundle)


def open_journal(settings: Settings, writer_id: str) -> JournalWriter:
    """Register the next journal of this writer on this node and return it, ready for its first fact."""
    coordination = open_coordination(settings)
    try:
        epoch = register_journal(coordination, writer_id, node_name(settings))
    finally:
        coordination.close()
    return JournalWriter(settings.journal_dir, writer_id, epoch, clock=SystemClock(), sync_ms=settings.journal_sync_ms)


def open_lease_journal(settings: Settings) -> JournalWriter:
    """Return a new journal for this process's reservations; nobody ships it, so it is in no list of those that are."""
    return JournalWriter(
        settings.lease_dir, process_writer_id("leases"), 1, clock=SystemClock(), sync_ms=settings.journal_sync_ms
    )


def journal_gate(settings: Settings) -> JournalGate:
    """Return what says whether this node may take on anything new.

    What stays free on its disk is what the setting says, and the last fact of as many calls as its gateways hold at once.
    """
    return JournalGate(
        settings.journal_dir,
        limit_bytes=settings.journal_limit_bytes,
        reserve_bytes=settings.disk_reserve_bytes + settings.most_gateways * settings.queue_limit * FINAL_BYTES,
        clock=SystemClock(),
    )


def node_name(settings: Settings) -> str:
    """Return this node's name, which outlives every restart: what it joined under, or what the home's first start made up."""
    if settings.node:
        return settings.node
    path = settings.home / "node-name"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(path, f"n{secrets.token_hex(4)}")
    return path.read_text()


def process_writer_id(component: str) -> str:
    """Return a journal writer's name that no other process has had: the component and a random part."""
    return f"{component}.r{secrets.token_hex(6)}"


def build_shipper(settings: Settings) -> Shipper:
    """Return the shipper of the journals of the node whose settings these are; it takes over from the one before.

    Raises ConflictError when that one still lives, ConfigurationError for a lake without a place.
    """
    from cluster.lake.ship import Shipper

    store = open_object_store(settings)
    writer = open_journal(settings, f"shipper.{node_name(settings)}")
    return Shipper(settings.journal_dir, store, writer=writer, clock=SystemClock())


def check_secrets(settings: Settings) -> None:
    """Raise ConfigurationError when a secret that the settings name can't be read here, before anything rests on it."""
    single = (settings.s3_access_key, settings.s3_secret_key, settings.otlp_headers, settings.opa_token)
    for reference in (*filter(None, single), *named_references(settings.model_keys).values()):
        usual_secrets().resolve(reference)


def check_object_store(settings: Settings) -> None:
    """Prove that the lake's store never overwrites; raises ConfigurationError when it does, StorageError when it is away."""
    from cluster.storage.probe import probe_create_only

    probe_create_only(open_object_store(settings))
