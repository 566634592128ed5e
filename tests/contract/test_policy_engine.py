"""What every policy engine answers: the rules' own tests, and on random inputs the same decisions as OPA's own engine."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import regorus

from cluster.admission.admission import ACTIVATION, ADMISSION, INVOCATION, AdmissionRequest, Entrypoint, decide
from cluster.admission.bundle import PolicyBundle, load_bundle
from cluster.admission.policy_engine import PolicyEngine, PolicyEngineError
from cluster.admission.regorus_policy_engine import RegorusPolicyEngine
from tests.governors import POLICIES
from tests.servers.opa import OpaPolicyEngine
from tests.sizes import soak

RULE_TESTS = tuple((p.name, p.read_text()) for p in sorted(POLICIES.glob("*_test.rego")))
# Replacing data by `with` below an imported package leaves regorus without an answer; OPA runs all of them.
REGORUS_RUNS = ("terms_test.rego", "invocation_test.rego")


@pytest.fixture(scope="module")
def bundle() -> PolicyBundle:
    return load_bundle(POLICIES)


@pytest.fixture(scope="module")
def opa(bundle: PolicyBundle) -> Iterator[OpaPolicyEngine]:
    engine = OpaPolicyEngine(bundle, extra=RULE_TESTS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def embedded(bundle: PolicyBundle) -> RegorusPolicyEngine:
    return RegorusPolicyEngine(bundle)


@pytest.fixture(params=["regorus", "opa"])
def engine(request: pytest.FixtureRequest) -> PolicyEngine:
    engine: PolicyEngine = request.getfixturevalue({"regorus": "embedded", "opa": "opa"}[request.param])
    return engine


def rules_of(name: str, text: str) -> list[str]:
    package = re.search(r"^package (\S+)$", text, re.MULTILINE)
    assert package, name
    return [f"data.{package[1]}.{rule}" for rule in re.findall(r"^(test_\w+)", text, re.MULTILINE)]


@pytest.mark.parametrize(("name", "text"), RULE_TESTS, ids=[n for n, _ in RULE_TESTS])
def test_the_rules_pass_their_own_tests(opa: OpaPolicyEngine, name: str, text: str) -> None:
    """Every test rule beside a policy is true on OPA."""
    rules = rules_of(name, text)
    assert len(rules) > 5
    assert [r for r in rules if opa.value(r, "{}") is not True] == []


@pytest.mark.parametrize("name", REGORUS_RUNS)
def test_the_rules_pass_their_own_tests_on_the_embedded_engine(bundle: PolicyBundle, name: str) -> None:
    """So they are on the embedded engine, as far as it can replace data."""
    engine = regorus.Engine()
    for module, text in (*bundle.modules, *RULE_TESTS):
        engine.add_policy(module, text)
    engine.set_input_json("{}")
    assert [r for r in rules_of(name, dict(RULE_TESTS)[name]) if engine.eval_rule_as_json(r) != "true"] == []


def test_every_policy_has_tests(bundle: PolicyBundle) -> None:
    """A rule file without a test file beside it is not finished."""
    assert {n.removesuffix("_test.rego") for n, _ in RULE_TESTS} == {n.removesuffix(".rego") for n, _ in bundle.modules}


@pytest.mark.parametrize("entrypoint", [ADMISSION, ACTIVATION, INVOCATION], ids=lambda e: e.rule)
def test_an_empty_input_is_a_clean_no(engine: PolicyEngine, entrypoint: Entrypoint) -> None:
    """Every engine answers with all checks, none of which passed by accident."""
    answer = engine.evaluate(entrypoint.rule, "{}")
    assert answer["allow"] is False
    assert answer["checks"].keys() >= entrypoint.checks
    assert True not in answer["checks"].values()


def test_what_is_not_there_is_an_error(engine: PolicyEngine) -> None:
    """An undefined rule, a rule that is no object, and an input that is no JSON raise PolicyEngineError."""
    for rule, text in (("data.sovereign.none", "{}"), ("data.sovereign.admission.allow", "{}"), (ADMISSION.rule, "{")):
        with pytest.raises(PolicyEngineError):
            engine.evaluate(rule, text)


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
        entrypoint = rng.choice([ADMISSION, ADMISSION, ACTIVATION, INVOCATION])
        if entrypoint is INVOCATION:
            action = rng.choice(["invoke", "register", "usage", "list", "own"])
            return entrypoint, {"principal": who, "action": action, "tenant": rng.choice([tenant, "default"])}
        document: dict[str, Any] = {"principal": who, "agent": self.agent()}
        if entrypoint is ACTIVATION:
            granted = rng.choice([[], ["web_search"], document["agent"]["allowed_tools"] or ["report_generation"]])
            document |= {"tools": granted, "state": rng.choice(["passive", "passive", "passive", "revoked", "live"])}
        return entrypoint, document

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


def test_decisions_are_those_of_opa(opa: OpaPolicyEngine, embedded: RegorusPolicyEngine, bundle: PolicyBundle) -> None:
    """On inputs whole and broken both engines decide alike: same allow, same tools; on whole ones the same answer throughout."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    inputs = Inputs(rng, bundle)
    seen = {True: 0, False: 0}
    for number in range(soak(300, 20_000)):
        entrypoint, document = inputs.one()
        whole = rng.random() < 0.5
        document = document if whole else inputs.broken(document)
        request = AdmissionRequest(entrypoint, json.dumps(document).encode())
        ours, theirs = decide(embedded, request), decide(opa, request)
        where = f"seed {seed}, input {number}: {entrypoint.rule} {json.dumps(document)}"
        # First and by itself: never do we allow what OPA refuses.
        assert theirs.allow or not ours.allow, where
        assert (ours.allow, ours.tools) == (theirs.allow, theirs.tools), where
        if whole:
            assert (ours.failed, ours.obligations) == (theirs.failed, theirs.obligations), where
        seen[ours.allow] += 1
    assert min(seen.values()) > 20, f"seed {seed}: the inputs are too much alike: {seen}"
