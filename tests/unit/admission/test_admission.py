"""A decision is a clean yes or a no, and says why."""

from __future__ import annotations

import gc
import os
import signal
import threading
from dataclasses import replace
from typing import Any

import orjson
import psutil
import pytest

from cluster.admission.admission import (
    ACTIVATION,
    ADMISSION,
    INVOCATION,
    AdmissionRequest,
    Decision,
    Entrypoint,
    admission_request,
    decide,
    invocation_request,
)
from cluster.admission.bundle import PolicyBundle, load_bundle
from cluster.admission.policy_engine import MAX_INPUT_CHARS, PolicyEngineError
from cluster.admission.regorus_policy_engine import RegorusPolicyEngine
from cluster.agents.spec import AgentSpec
from cluster.errors import ConfigurationError
from cluster.identity.ids import TenantId
from cluster.identity.roles import Scope
from tests.governors import DEFAULT, POLICIES, TRIAL, changed_policies, principal, request


@pytest.fixture(scope="module")
def bundle() -> PolicyBundle:
    return load_bundle(POLICIES)


@pytest.fixture(scope="module")
def engine(bundle: PolicyBundle) -> RegorusPolicyEngine:
    return RegorusPolicyEngine(bundle)


def spec(bundle: PolicyBundle, *capabilities: str, tenant: TenantId = DEFAULT, **more: Any) -> AgentSpec:
    plan = bundle.catalog.plan_of(tenant)
    assert plan
    return request("a", *capabilities, **more).to_spec(plan.defaults.to_spec_defaults())


def names(decision: Decision) -> list[str]:
    return [f.name for f in decision.failed]


def test_a_good_request_is_allowed_with_its_tools(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """Tools follow from capabilities; the decision names policy and input by their digests."""
    question = admission_request(principal(), spec(bundle, "market_analysis"))
    decision = decide(engine, question)
    assert (decision.allow, decision.failed, decision.obligations) == (True, (), ())
    assert decision.tools == ("data_analysis", "report_generation", "web_search")
    assert (decision.revision, decision.digest) == (bundle.revision, bundle.digest)
    again = decide(engine, question)
    assert again.input_digest == decision.input_digest
    assert again.decision_id > decision.decision_id


def test_refused_capabilities_are_named(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """The failed check says which capabilities are not the tenant's, known or not."""
    decision = decide(engine, admission_request(principal(), spec(bundle, "payment_execution", "magic", "conversation")))
    assert not decision.allow
    assert names(decision) == ["capability_allowed"]
    assert "magic, payment_execution" in decision.failed[0].message
    assert decision.tools == ()


@pytest.mark.parametrize("tool", ["shell", "Web_search", "web-search", "web_search "])
def test_an_unknown_tool_or_an_alias_is_denied(engine: RegorusPolicyEngine, tool: str, bundle: PolicyBundle) -> None:
    """Only the exact name of a tool that follows is granted (threat 31)."""
    document = orjson.loads(admission_request(principal(), spec(bundle, "market_analysis")).input_json)
    document["agent"]["allowed_tools"] = [tool]
    assert names(decide(engine, AdmissionRequest(ADMISSION, orjson.dumps(document)))) == ["tools_follow"]


def test_plans_differ(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """What one tenant's plan includes, another's does not."""
    asked = spec(bundle, "market_analysis", tenant=TRIAL)
    assert names(decide(engine, admission_request(principal(TRIAL), asked))) == ["capability_allowed"]
    assert names(decide(engine, admission_request(principal(TenantId("nobody")), asked)))[-1:] != []
    assert decide(engine, admission_request(principal(), asked)).allow


@pytest.mark.parametrize("entrypoint", [ADMISSION, ACTIVATION, INVOCATION], ids=lambda e: e.rule)
@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b"null", b'{"agent":null,"principal":null}', b'{"agent":[],"principal":{"scopes":0}}']
)
def test_an_input_without_its_fields_is_denied(engine: RegorusPolicyEngine, entrypoint: Entrypoint, data: bytes) -> None:
    """Whatever is missing, the answer is no (threat 26)."""
    decision = decide(engine, AdmissionRequest(entrypoint, data))
    assert not decision.allow
    assert decision.failed


def test_each_missing_field_is_denied(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """A good input without any one of its fields is refused (threat 26)."""
    whole = orjson.loads(admission_request(principal(), spec(bundle, "market_analysis")).input_json)
    for part, needed in (("agent", whole["agent"]), ("principal", {"tenant": "", "scopes": ""})):
        for field in needed:
            document = whole | {part: {k: v for k, v in whole[part].items() if k != field}}
            assert not decide(engine, AdmissionRequest(ADMISSION, orjson.dumps(document))).allow, field


class Answering:
    """An engine that gives one prepared answer."""

    revision, digest = "r", "d"

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def evaluate(self, entrypoint: str, input_json: str) -> dict[str, Any]:
        if isinstance(self._answer, Exception):
            raise self._answer
        answer: dict[str, Any] = self._answer
        return answer


GOOD: dict[str, Any] = {
    "allow": True,
    "checks": dict.fromkeys(INVOCATION.checks, True),
    "failures": {},
    "obligations": [],
    "tools": [],
}


def test_a_prepared_clean_yes_is_a_yes() -> None:
    """The answers below are refused for what is wrong with them and for nothing else."""
    assert decide(Answering(GOOD), invocation_request(principal(), "invoke", DEFAULT)).allow


@pytest.mark.parametrize(
    "answer",
    [
        PolicyEngineError("it broke"),
        {},
        GOOD | {"allow": "true"},
        GOOD | {"allow": 1},
        GOOD | {"checks": []},
        GOOD | {"checks": {}},
        GOOD | {"checks": GOOD["checks"] | {"scope_held": False}},
        GOOD | {"checks": GOOD["checks"] | {"scope_held": "true"}},
        GOOD | {"checks": {k: v for k, v in GOOD["checks"].items() if k != "same_tenant"}},
        GOOD | {"allow": False},
        GOOD | {"failures": None},
        GOOD | {"obligations": None},
        GOOD | {"tools": "web_search"},
        GOOD | {"tools": [1]},
    ],
)
def test_an_unclean_answer_is_a_no(answer: Any) -> None:
    """An error, a lacking check, a yes beside a failed check, and any odd form deny, and grant nothing (threat 28)."""
    decision = decide(Answering(answer), invocation_request(principal(), "invoke", DEFAULT))
    assert (decision.allow, decision.tools) == (False, ())
    assert names(decision) == ["policy_engine"]


def with_rules(bundle: PolicyBundle, text: str) -> PolicyBundle:
    """The bundle with one more rule file."""
    return replace(bundle, modules=(*bundle.modules, ("hostile.rego", f"package sovereign.hostile\n\nimport rego.v1\n\n{text}")))


ENDLESS = "count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == 7])"


def test_a_late_answer_is_a_no_and_the_next_one_is_right(bundle: PolicyBundle) -> None:
    """A rule that loops is stopped at its deadline and denies by that name; other questions are answered (threat 28)."""
    engine = RegorusPolicyEngine(with_rules(bundle, f'decision := {{"n": {ENDLESS}}}'), deadline_us=1_000_000)
    late = decide(engine, AdmissionRequest(Entrypoint("data.sovereign.hostile.decision", frozenset()), b"{}"))
    assert (late.allow, names(late)) == (False, ["policy_timeout"])
    assert "1000 ms" in late.failed[0].message
    assert decide(engine, invocation_request(principal(), "invoke", DEFAULT)).allow


@pytest.mark.parametrize(("end", "code"), [(signal.SIGALRM, "policy_timeout"), (signal.SIGKILL, "policy_engine")])
def test_threads_decide_while_a_rule_loops(bundle: PolicyBundle, end: signal.Signals, code: str) -> None:
    """An evaluation that never ends holds no other one up, and its process may end in any way: that is a no (threat 28)."""
    engine = RegorusPolicyEngine(with_rules(bundle, f'decision := {{"n": {ENDLESS}}}'), deadline_us=60_000_000)
    (busy,) = engine._idle
    answers: list[str] = []
    looping = threading.Thread(target=lambda: answers.append(_refused(engine, "data.sovereign.hostile.decision")))
    looping.start()
    while engine._idle:
        pass
    assert decide(engine, invocation_request(principal(), "invoke", DEFAULT)).allow
    assert looping.is_alive()
    # The alarm is what the deadline sends a minute later.
    os.kill(busy.pid, end)
    looping.join()
    assert answers == [code]


def _refused(engine: RegorusPolicyEngine, rule: str) -> str:
    with pytest.raises(PolicyEngineError) as refused:
        engine.evaluate(rule, "{}")
    return refused.value.code


def test_rules_that_never_finish_loading_are_refused(bundle: PolicyBundle) -> None:
    """The load is stopped at its deadline, and the governor goes on without these rules (threat 28)."""
    deep = f"decision := {'[' * 400}{']' * 400}"
    with pytest.raises(ConfigurationError, match=r"can't be (loaded|compiled)"):
        RegorusPolicyEngine(with_rules(bundle, deep * 50), load_deadline_us=300_000)
    with pytest.raises(ConfigurationError, match="longer than 1 ms"):
        RegorusPolicyEngine(bundle, load_deadline_us=1)


def test_a_rule_that_takes_all_memory_ends_alone(bundle: PolicyBundle) -> None:
    """Its process ends and denies; the governor has lost nothing (threat 28)."""
    engine = RegorusPolicyEngine(with_rules(bundle, 'decision := {"n": numbers.range(1, 300000000)}'))
    assert _refused(engine, "data.sovereign.hostile.decision") == "policy_engine"
    assert decide(engine, invocation_request(principal(), "invoke", DEFAULT)).allow


def test_a_process_that_died_idle_is_replaced(bundle: PolicyBundle) -> None:
    """What the machine ended while nothing was asked of it costs no answer."""
    engine = RegorusPolicyEngine(bundle)
    (idle,) = engine._idle
    os.kill(idle.pid, signal.SIGKILL)
    os.waitid(os.P_PID, idle.pid, os.WEXITED | os.WNOWAIT)
    assert decide(engine, invocation_request(principal(), "invoke", DEFAULT)).allow


def test_a_fork_asks_processes_of_its_own(bundle: PolicyBundle) -> None:
    """Parent and fork share a socket, and neither may read the other's answers."""
    engine = RegorusPolicyEngine(bundle)
    (before,) = engine._idle
    question = invocation_request(principal(), "invoke", DEFAULT)
    pid = os.fork()
    if pid == 0:
        right = decide(engine, question).allow and before.pid not in [idle.pid for idle in engine._idle]
        engine.close()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert decide(engine, question).allow
    assert [idle.pid for idle in engine._idle] == [before.pid]


def test_no_rule_sees_the_environment(bundle: PolicyBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the governor's process holds in its environment is not in the one that evaluates."""
    monkeypatch.setenv("PLANTED", "a-secret")
    engine = RegorusPolicyEngine(bundle)
    (idle,) = engine._idle
    assert psutil.Process(idle.pid).environ() == {"LC_ALL": "C.UTF-8"}


def test_an_engine_takes_its_processes_with_it(bundle: PolicyBundle) -> None:
    """Closed, asked once more, or forgotten, it leaves no process behind."""
    engine = RegorusPolicyEngine(bundle)
    pids = [idle.pid for idle in engine._idle]
    engine.close()
    # A question that was under way.
    assert engine.evaluate("data.sovereign.egress.grant", "{}") == {"hosts": []}
    assert engine._idle == []
    engine = RegorusPolicyEngine(bundle)
    pids += [idle.pid for idle in engine._idle]
    del engine
    gc.collect()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_every_thread_gets_right_answers(engine: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """Threads decide at the same time, each by an engine of its own."""
    yes = admission_request(principal(), spec(bundle, "market_analysis"))
    no = admission_request(principal(), spec(bundle, "payment_execution"))
    wrong: list[object] = []

    def work() -> None:
        for _ in range(20):
            answers = decide(engine, yes).allow, decide(engine, no).allow
            if answers != (True, False):
                wrong.append(answers)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("text", ["", "{", '{"a":"\\ud800"}', "[" * 20_000, " " * (MAX_INPUT_CHARS + 1)], ids=lambda t: t[:10])
def test_an_input_that_is_no_json_is_an_error(engine: RegorusPolicyEngine, text: str) -> None:
    """The process lives, and the engine goes on answering (threat 28)."""
    with pytest.raises(PolicyEngineError):
        engine.evaluate(ADMISSION.rule, text)
    with pytest.raises(PolicyEngineError):
        engine.evaluate("data.sovereign.nothing", "{}")
    assert engine.evaluate(ADMISSION.rule, "{}")["allow"] is False


def test_the_input_holds_no_free_text(bundle: PolicyBundle) -> None:
    """Instructions and label values, which may be personal, never reach the policy or the decision's record."""
    asked = spec(bundle, "conversation", instructions="call Ada at 0123", labels={"owner": "ada-lovelace"})
    question = admission_request(principal(), asked)
    assert b"Ada" not in question.input_json
    assert b"ada" not in question.input_json


@pytest.mark.parametrize("action", ["register", "read", "list", "remove", "invoke"])
def test_an_action_needs_its_scope(engine: RegorusPolicyEngine, action: str) -> None:
    """All scopes but the one needed do not allow an action; it alone does; and never with another tenant."""
    needed = Scope(f"sovereign:agents:{action}")
    without = principal(scopes=frozenset(Scope) - {needed})
    only = principal(scopes=frozenset({needed}))
    assert names(decide(engine, invocation_request(without, action, DEFAULT))) == ["scope_held"]
    assert decide(engine, invocation_request(only, action, DEFAULT)).allow
    assert names(decide(engine, invocation_request(only, action, TRIAL))) == ["same_tenant"]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("plans.yaml", {"standard.quota.cpu": "-1"}, "plans.standard.quota.cpu"),
        ("plans.yaml", {"standard.surprise": 1}, "plans.standard.surprise"),
        ("plans.yaml", {"standard.capabilities": ["magic"]}, "magic"),
        ("plans.yaml", {"standard.models": ["unknown:*"]}, "unknown"),
        ("plans.yaml", {"standard.defaults.agent_type": "robot"}, "robot"),
        ("plans.yaml", {"standard.max_replicas": 0}, "plans.standard.max_replicas"),
        ("plans.yaml", {"standard.raw_actors": "yes"}, "plans.standard.raw_actors"),
        (
            "plans.yaml",
            {"standard.agent_limits": {"cpu": {"min": "2", "max": "1"}, "memory": {"min": "1", "max": "2"}}},
            "cpu.min",
        ),
        ("tenants.yaml", {"default": {"plan": "none", "active": True}}, "none"),
        ("tenants.yaml", {"Bad Tenant": {"plan": "standard", "active": True}}, "tenants"),
        ("tenants.yaml", {"default": {"plan": "standard", "active": "yes"}}, "active"),
        ("capabilities.yaml", {"conversation": {"description": "x", "tools": ["shell"]}}, "shell"),
        ("manifest.yaml", {"revision": 7}, "manifest.revision"),
    ],
)
def test_odd_data_is_refused_whole_and_named(tmp_path: Any, file: str, change: dict[str, Any], said: str) -> None:
    """Data that does not fit its schema, or names what is not defined, loads nothing and says where."""
    with pytest.raises(ConfigurationError) as refused:
        load_bundle(changed_policies(tmp_path, file, change))
    assert said in str(refused.value)


def test_raw_actors_are_for_active_tenants_of_a_plan_that_has_them(tmp_path: Any) -> None:
    """A plan that does not say so does not have them; nor does a tenant that is not active, or not there."""
    tenants = {"free": {"plan": "trial", "active": True}, "asleep": {"plan": "trial", "active": False}}
    changed_policies(tmp_path, "tenants.yaml", tenants)
    catalog = load_bundle(changed_policies(tmp_path, "plans.yaml", {"trial.raw_actors": True})).catalog
    assert [catalog.may_have_raw_actors(t) for t in ("free", "asleep", "default", "nobody")] == [True, False, False, False]


def test_an_incomplete_or_broken_folder_is_refused(tmp_path: Any) -> None:
    """No rules, no data, a missing or an extra data file, a key twice, and rules that do not compile load nothing."""
    with pytest.raises(ConfigurationError):
        load_bundle(tmp_path)
    copy = changed_policies(tmp_path, "manifest.yaml", {})
    tools = (copy / "data" / "tools.yaml").read_text()
    for name, text in [("tools.yaml", None), ("more.yaml", "a: 1"), ("tools.yaml", tools + tools), ("tools.yaml", "a: [")]:
        path = copy / "data" / name
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(ConfigurationError):
            load_bundle(copy)
        path.unlink(missing_ok=True)
        (copy / "data" / "tools.yaml").write_text(tools)
    load_bundle(copy)
    (copy / "admission.rego").write_text("package sovereign.admission\nallow if {")
    with pytest.raises(ConfigurationError, match=r"admission\.rego"):
        RegorusPolicyEngine(load_bundle(copy))


def test_the_digest_is_of_every_file(tmp_path: Any, bundle: PolicyBundle) -> None:
    """Any changed byte of rules or data changes it; tests and the place of the folder do not."""
    copy = changed_policies(tmp_path, "manifest.yaml", {})
    (copy / "data" / "manifest.yaml").write_bytes((POLICIES / "data" / "manifest.yaml").read_bytes())
    (copy / "more_test.rego").write_text("package x")
    assert load_bundle(copy).digest == bundle.digest
    seen = {bundle.digest}
    for name in ("terms.rego", "data/tools.yaml"):
        (copy / name).write_text((copy / name).read_text() + "\n# changed\n")
        seen.add(load_bundle(copy).digest)
    assert len(seen) == 3
