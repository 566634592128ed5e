"""What every policy engine answers: the rules' own tests, and on random inputs the same decisions as OPA's own engine."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster import wiring
from cluster.admission.admission import ACTIVATION, INVOCATION, AdmissionRequest, Entrypoint, decide
from cluster.admission.bundle import PolicyBundle, load_bundle
from cluster.admission.opa_policy_engine import OpaPolicyEngine
from cluster.admission.policy_engine import PolicyEngine, PolicyEngineError, PolicyTimeoutError
from cluster.admission.questions import DATA_ACCESS, DELEGATION, EGRESS, ENTRYPOINTS, REGION, TOOL_CALL
from cluster.admission.regorus_policy_engine import RegorusPolicyEngine
from cluster.errors import ConfigurationError
from cluster.identity.secrets import Secret
from cluster.settings import Settings
from tests.governors import DEFAULT, POLICIES, principal
from tests.servers.opa import OpaOracle
from tests.servers.opa_rest import opa_server
from tests.sizes import soak

RULE_TESTS = tuple((p.name, p.read_text()) for p in sorted(POLICIES.glob("*_test.rego")))
ENDLESS = "count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == 7])"


@pytest.fixture(scope="module")
def bundle() -> PolicyBundle:
    return load_bundle(POLICIES)


@pytest.fixture(scope="module")
def oracle(bundle: PolicyBundle) -> Iterator[OpaOracle]:
    engine = OpaOracle(bundle, extra=RULE_TESTS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def embedded(bundle: PolicyBundle) -> RegorusPolicyEngine:
    return RegorusPolicyEngine(bundle)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with opa_server() as url:
        yield url


@pytest.fixture(scope="module")
def opa(bundle: PolicyBundle, url: str) -> Iterator[OpaPolicyEngine]:
    engine = OpaPolicyEngine(bundle, url)
    yield engine
    engine.close()


@pytest.fixture(params=["regorus", "opa"])
def engine(request: pytest.FixtureRequest) -> PolicyEngine:
    engine: PolicyEngine = request.getfixturevalue({"regorus": "embedded", "opa": "opa"}[request.param])
    return engine


def with_rules(bundle: PolicyBundle, text: str) -> PolicyBundle:
    """The bundle with one more rule file, under a digest of its own."""
    module = ("hostile.rego", f"package sovereign.hostile\n\nimport rego.v1\n\n{text}\n")
    return replace(bundle, modules=(*bundle.modules, module), digest="0" * 64)


@pytest.fixture(params=["regorus", "opa"])
def hostile(request: pytest.FixtureRequest, bundle: PolicyBundle) -> Iterator[PolicyEngine]:
    """An engine with a rule that loops, and a short deadline."""
    rules = with_rules(bundle, f'decision := {{"n": {ENDLESS}}}')
    if request.param == "regorus":
        yield RegorusPolicyEngine(rules, deadline_us=200_000)
        return
    # A server of its own: it goes on looping until it is ended.
    with opa_server() as url:
        engine = OpaPolicyEngine(replace(rules, modules=rules.modules[-1:]), url, deadline_us=200_000)
        yield engine
        engine.close()


@pytest.mark.parametrize(("name", "text"), RULE_TESTS, ids=[n for n, _ in RULE_TESTS])
def test_the_rules_pass_their_own_tests(oracle: OpaOracle, name: str, text: str) -> None:
    """Every test rule beside a policy is true on OPA; `sovereign policy test` runs them on the embedded engine."""
    package = re.search(r"^package (\S+)$", text, re.MULTILINE)
    assert package, name
    rules = re.findall(r"^(test_\w+)", text, re.MULTILINE)
    assert len(rules) > 5
    # All at once: each question of its own would be compiled by itself.
    answers = oracle.value(f"data.{package[1]}", "{}")
    assert [rule for rule in rules if answers.get(rule) is not True] == []


def test_every_policy_has_tests(bundle: PolicyBundle) -> None:
    """A rule file without a test file beside it is not finished."""
    assert {n.removesuffix("_test.rego") for n, _ in RULE_TESTS} == {n.removesuffix(".rego") for n, _ in bundle.modules}


@pytest.mark.parametrize("entrypoint", ENTRYPOINTS.values(), ids=lambda e: e.rule)
def test_an_empty_input_is_a_clean_no(engine: PolicyEngine, entrypoint: Entrypoint) -> None:
    """Every engine answers with all checks, none of which passed by accident (threat 26)."""
    answer = engine.evaluate(entrypoint.rule, "{}")
    assert answer["allow"] is False
    assert answer["checks"].keys() >= entrypoint.checks
    assert True not in answer["checks"].values()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("data.sovereign.none", "{}"),
        ("data.sovereign.none.decision", "{}"),
        ("data.sovereign.admission.allow", "{}"),
        ("data.sovereign.admission.decision", "{"),
        ("data.sovereign.admission.decision", '{}, "x": 1'),
        ("data.sovereign.admission.decision", '{"a":"\\ud800"}'),
        ("data.sovereign.admission.decision", "[" * 20_000),
        ("data.sovereign.admission.decision", " " * 70_000),
        ("data.sovereign.admission.decision", "\ud800"),
    ],
    ids=range(9),
)
def test_what_is_not_there_is_an_error(engine: PolicyEngine, rule: str, text: str) -> None:
    """An undefined rule, a rule that is no object, and an input that is no JSON raise PolicyEngineError; the next is answered."""
    with pytest.raises(PolicyEngineError):
        engine.evaluate(rule, text)
    assert engine.evaluate("data.sovereign.egress.grant", "{}") == {"hosts": []}


def test_a_rule_that_loops_is_stopped_at_its_deadline(hostile: PolicyEngine) -> None:
    """It is a timeout by name, whatever the rule would have said later (threat 28)."""
    with pytest.raises(PolicyTimeoutError, match="longer than 200 ms"):
        hostile.evaluate("data.sovereign.hostile.decision", "{}")


def test_an_engine_names_the_bundle_that_it_evaluates(engine: PolicyEngine, bundle: PolicyBundle) -> None:
    """A decision's revision and digest are the bundle's."""
    assert (engine.revision, engine.digest) == (bundle.revision, bundle.digest)


@pytest.mark.parametrize("url", ["http://opa.example:8181", "ftp://127.0.0.1", "127.0.0.1:8181", "http://127.0.0.1.example", ""])
def test_an_opa_that_anyone_could_answer_for_is_refused(bundle: PolicyBundle, url: str) -> None:
    """Plain HTTP beyond this machine decides nothing here."""
    with pytest.raises(ConfigurationError, match=r"https, or on loopback"):
        OpaPolicyEngine(bundle, url)


def test_a_setting_chooses_the_engine(bundle: PolicyBundle, url: str, tmp_path: Path) -> None:
    """Unless it says opa, policies are evaluated here."""
    chosen = wiring.open_policy_engine(Settings.load(home=tmp_path, policy_engine="opa", opa_url=url), bundle)
    assert isinstance(chosen, OpaPolicyEngine)
    assert decide(chosen, YES).allow
    chosen.close()
    assert isinstance(wiring.open_policy_engine(Settings.load(home=tmp_path), bundle), RegorusPolicyEngine)


def test_an_opa_that_wants_a_token_gets_it(bundle: PolicyBundle) -> None:
    """Without it the server takes no policy, and nobody is told what it was."""
    few = replace(bundle, modules=tuple((n, t) for n, t in bundle.modules if n == "invocation.rego"))
    with opa_server("t0ken") as url:
        with pytest.raises(ConfigurationError, match="401"):
            OpaPolicyEngine(few, url)
        engine = OpaPolicyEngine(few, url, token=Secret("env:X", "t0ken"))
        assert decide(engine, YES).allow
        assert "t0ken" not in repr(vars(engine))
        engine.close()


def test_an_opa_that_is_away_is_a_no(bundle: PolicyBundle) -> None:
    """At the start it is a configuration error; when it goes later, decisions are refused."""
    question = AdmissionRequest(INVOCATION, b"{}")
    few = replace(bundle, modules=tuple((n, t) for n, t in bundle.modules if n == "invocation.rego"))
    with opa_server() as url:
        engine = OpaPolicyEngine(few, url)
        assert "policy_engine" not in [f.name for f in decide(engine, question).failed]
    assert [f.name for f in decide(engine, question).failed] == ["policy_engine"]
    engine.close()
    with pytest.raises(ConfigurationError, match="can't be sent"):
        OpaPolicyEngine(few, url)


YES = AdmissionRequest(
    INVOCATION,
    json.dumps(
        {"principal": {"tenant": DEFAULT, "scopes": sorted(principal().scopes)}, "action": "invoke", "tenant": DEFAULT}
    ).encode(),
)


def put(url: str, name: str, text: str) -> None:
    assert httpx.put(f"{url}/v1/policies/sovereign/{name}", content=text).status_code == 200


def patch(url: str, name: str, value: Any) -> None:
    assert httpx.patch(f"{url}/v1/data", json=[{"op": "add", "path": f"/{name}", "value": value}]).status_code == 204


def another_bundle(url: str, bundle: PolicyBundle) -> None:
    few = tuple((n, t) for n, t in bundle.modules if n == "invocation.rego")
    OpaPolicyEngine(replace(bundle, digest="f" * 64, modules=few), url).close()


def one_file_of_another(url: str, bundle: PolicyBundle) -> None:
    put(url, "terms.rego", dict(bundle.modules)["terms.rego"] + f'\nbundle_digest := "{"f" * 64}"\n')


def one_file_without_a_stamp(url: str, bundle: PolicyBundle) -> None:
    put(url, "terms.rego", dict(bundle.modules)["terms.rego"])


def data_of_another(url: str, bundle: PolicyBundle) -> None:
    patch(url, "bundle_digest", "f" * 64)


@pytest.mark.parametrize("change", [another_bundle, one_file_of_another, one_file_without_a_stamp, data_of_another])
def test_an_opa_with_other_rules_decides_nothing(
    bundle: PolicyBundle, url: str, opa: OpaPolicyEngine, change: Callable[[str, PolicyBundle], None]
) -> None:
    """An answer counts only when all rules and data that it rests on are of the same bundle, which is the governor's."""
    assert decide(opa, YES).allow
    change(url, bundle)
    refused = decide(opa, YES)
    assert (refused.allow, [f.name for f in refused.failed]) == (False, ["policy_engine"])
    OpaPolicyEngine(bundle, url).close()
    assert decide(opa, YES).allow


def test_an_opa_with_rules_of_others_in_our_packages_is_refused(bundle: PolicyBundle, url: str, opa: OpaPolicyEngine) -> None:
    """A file that somebody else put there could add to a decision; files of other packages are left alone."""
    theirs, other = f"{url}/v1/policies/theirs", f"{url}/v1/policies/other"
    httpx.put(theirs, content="package theirs\nimport rego.v1\na := 1\n")
    OpaPolicyEngine(bundle, url).close()
    httpx.put(other, content="package sovereign.admission\nimport rego.v1\nallow := true\n")
    with pytest.raises(ConfigurationError, match="from elsewhere: other"):
        OpaPolicyEngine(bundle, url)
    assert {httpx.delete(where).status_code for where in (theirs, other)} == {200}


def test_a_file_that_a_bundle_lost_is_gone_from_opa(bundle: PolicyBundle, url: str, opa: OpaPolicyEngine) -> None:
    """What an earlier bundle sent and this one does not have decides nothing any more."""
    put(url, "old.rego", "package sovereign.old\nimport rego.v1\ndecision := {}\n")
    OpaPolicyEngine(bundle, url).close()
    assert "old.rego" not in httpx.get(f"{url}/v1/policies").text
    assert decide(opa, YES).allow


def test_broken_rules_are_refused(bundle: PolicyBundle, url: str) -> None:
    """Either engine says so when it is given them, and not at the first question."""
    broken = with_rules(bundle, "allow if y == z")
    with pytest.raises(ConfigurationError, match=r"hostile\.rego"):
        RegorusPolicyEngine(broken)
    with pytest.raises(ConfigurationError, match="does not take the policy"):
        OpaPolicyEngine(replace(broken, modules=broken.modules[-1:]), url)
    OpaPolicyEngine(bundle, url).close()


class Inputs:
    """Random inputs of each entry point: some good, some with odd values, some with one place broken."""

    def __init__(self, rng: random.Random, bundle: PolicyBundle) -> None:
        self._rng = rng
        catalog = json.loads(bundle.data_json)["catalog"]
        self._catalog = catalog
        self._plans = list(catalog["plans"].values())

    def _names(self, kind: str, plan: dict[str, Any], least: int = 0) -> list[str]:
        pool = list(plan[kind])
        if self._rng.random() < 0.15:
            pool += [*self._catalog[kind], "unknown", ""]
        return self._rng.sample(pool, min(len(pool), self._rng.randrange(least, 4)))

    def agent(self) -> dict[str, Any]:
        rng = self._rng
        plan = rng.choice(self._plans)
        capabilities = self._names("capabilities", plan, 1)
        follow = sorted({t for c in capabilities for t in self._catalog["capabilities"].get(c, {}).get("tools", [])})
        other = rng.choice(["shell", "Web_Search", *self._catalog["tools"]])
        odd = rng.random() < 0.2
        cpu, memory = (plan["agent_limits"][k] for k in ("cpu_milli", "memory_bytes"))
        models = [m.replace("*", "small") for m in plan["models"]]
        return {
            "region": rng.choice([*plan["regions"], *(["moon"] if odd else [])]),
            "agent_id": "agent-1",
            "agent_type": rng.choice([*plan["agent_types"], *(["robot"] if odd else [])]),
            "capabilities": capabilities,
            "allowed_tools": rng.choice([None, [], follow, follow[:1], [*follow, other]]),
            "model": rng.choice([*models, *(["other:x", "local", "local:"] if odd else [])]),
            "cpu_milli": rng.choice([cpu["min"], cpu["max"]]) + (rng.choice([-1, 0, 1]) if odd else 0),
            "memory_bytes": rng.choice([memory["min"], memory["max"]]) + (rng.choice([-1, 1]) if odd else 0),
            "network_access": self._names("egress", plan),
            "data_access_level": rng.choice([*plan["data_access_levels"], *(self._catalog["data_access_levels"] if odd else [])]),
            "compliance": self._names("compliance", plan),
            "max_iterations": rng.choice([1, plan["max_iterations"], *([0, 101, 2.5] if odd else [])]),
            "replicas": rng.choice([1, 1, 1, 2]) if odd else 1,
        }

    def one(self) -> tuple[Entrypoint, dict[str, Any]]:
        rng = self._rng
        tenant = rng.choice(["default", "default", "trial", "nobody"])
        scopes = rng.sample(["sovereign:agents:register", "sovereign:agents:invoke", "sovereign:usage:read"], rng.randrange(1, 4))
        who = {"tenant": tenant, "project": "default", "subject": "key:1", "scopes": scopes}
        entrypoint = rng.choice(list(ENTRYPOINTS.values()))
        if entrypoint is INVOCATION:
            action = rng.choice(["invoke", "register", "usage", "list", "own"])
            return entrypoint, {"principal": who, "action": action, "tenant": rng.choice([tenant, "default"])}
        if entrypoint is DELEGATION:
            return entrypoint, self.delegation(who)
        document: dict[str, Any] = {"principal": who, "agent": self.agent()}
        granted = rng.choice([[], ["web_search"], document["agent"]["allowed_tools"] or ["report_generation"]])
        if entrypoint is ACTIVATION:
            document |= {"tools": granted, "state": rng.choice(["passive", "passive", "passive", "revoked", "live"])}
        elif entrypoint is TOOL_CALL:
            document |= {"tools": granted, "tool": rng.choice([*granted, "web_search", "shell"])}
        elif entrypoint is EGRESS:
            document["agent"]["network_access"] = rng.sample(list(self._catalog["egress"]), rng.randrange(1, 3))
            hosts = ["en.wikipedia.org", "api.openai.com", "api.worldbank.org"]
            host = rng.choice([*hosts, *hosts, "wikipedia.org", "evil.example", "xwikipedia.org"])
            scheme, port = rng.choice([("https", 443), ("https", 443), ("http", 80), ("https", 80), ("ftp", 21)])
            document["destination"] = {"scheme": scheme, "host": host, "port": port}
        elif entrypoint is DATA_ACCESS:
            classes = [*self._catalog["data_classes"], "gossip"]
            document |= {"data": {"class": rng.choice(classes)}, "operation": rng.choice(["read", "read", "write", "own"])}
        elif entrypoint is REGION:
            document["node"] = {"region": rng.choice([document["agent"]["region"], "eu", "unspecified"])}
        return entrypoint, document

    def delegation(self, who: dict[str, Any]) -> dict[str, Any]:
        rng = self._rng
        levels = list(self._catalog["data_access_levels"])
        depth = rng.choice([0, 0, 1, 2, 3])
        parent = {
            "tenant": who["tenant"],
            "agent_id": "parent",
            "scopes": who["scopes"],
            "tools": [*rng.sample(list(self._catalog["tools"]), 2), *(["ask_agent"] if rng.random() < 0.9 else [])],
            "network_access": rng.sample(list(self._catalog["egress"]), 1),
            "data_access_level": rng.choice(levels),
            "expires_us": 1_000,
            "depth": depth,
        }
        child = parent | {"agent_id": "child", "depth": depth + 1, "tools": parent["tools"][:1]}
        if rng.random() < 0.5:
            child |= rng.choice(
                [
                    {"tools": ["shell"]},
                    {"tenant": "other"},
                    {"agent_id": "parent"},
                    {"data_access_level": rng.choice(levels)},
                    {"expires_us": 1_001},
                    {"depth": 0},
                    {"network_access": []},
                    {"scopes": ["sovereign:agents:remove"]},
                ]
            )
        return {"principal": who, "parent": parent, "child": child}

    def broken(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a copy in which one place is gone or of another type."""
        rng = self._rng
        document = copy.deepcopy(document)
        place: Any = document
        while True:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or rng.random() < 0.4:
                break
            place = inner
        if rng.random() < 0.4:
            del place[key]
        else:
            odd = [
                None,
                True,
                False,
                0,
                -1,
                1 << 70,
                0.5,
                "",
                "x",
                "*",
                ":*",
                [],
                ["x"],
                [1],
                [None],
                [[]],
                {},
                {"x": 1},
                [{"a": 1}],
            ]
            place[key] = rng.choice(odd)
        return document


def test_decisions_are_those_of_opa(oracle: OpaOracle, embedded: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """On inputs whole and broken both engines decide alike: same allow, same tools; on whole ones the same answer throughout."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    inputs = Inputs(rng, bundle)
    seen = {entrypoint: {True: 0, False: 0} for entrypoint in ENTRYPOINTS.values()}
    for number in range(soak(1_000, 100_000)):
        entrypoint, document = inputs.one()
        whole = rng.random() < 0.5
        document = document if whole else inputs.broken(document)
        request = AdmissionRequest(entrypoint, json.dumps(document).encode())
        ours, theirs = decide(embedded, request), decide(oracle, request)
        where = f"seed {seed}, input {number}: {entrypoint.rule} {json.dumps(document)}"
        # First and by itself: never do we allow what OPA refuses.
        assert theirs.allow or not ours.allow, where
        assert (ours.allow, ours.tools) == (theirs.allow, theirs.tools), where
        if whole:
            assert (ours.failed, ours.obligations) == (theirs.failed, theirs.obligations), where
        seen[entrypoint][ours.allow] += 1
    for entrypoint, counts in seen.items():
        assert min(counts.values()) > 1, f"seed {seed}: the inputs of {entrypoint.rule} are too much alike: {counts}"
