"""What a decision costs on top of the bare policy engine, and how many registrations a second reach the disk.

    python -m benchmarks.admission

The bare engine is the same engine, rules, data and input: `set_input_json` and `eval_rule_as_json`, nothing else. A decision
is `decide()`: canonical input, its digest, evaluation, and the checks on the answer. The two run in turns, so that the
machine's moods hit both, and that gives the ratio. In such turns the first decision of each finds the caches full of the
other side's work (`decision_cold_us_p50`), so p99 is of decisions in a row, as a busy governance makes them. The same is
measured with a bundle of 300 rules, all of them part of the decision, and with 10,000 tenants. Registrations go through the
real registrar and its whole transaction (decision, quota, budget, reservation, row): journal and coordination on disk, synced
before the answer, by 8 threads as governance has. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from cluster import wiring
from cluster.admission.admission import ADMISSION, AdmissionRequest, Entrypoint, admission_request, decide
from cluster.admission.bundle import PolicyBundle, load_bundle
from cluster.admission.registrar import Registrar
from cluster.admission.regorus_policy_engine import RegorusPolicyEngine
from cluster.agents.registration import parse_registration
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.settings import PROJECT_ROOT, Settings

EXAMPLE = json.loads((PROJECT_ROOT / "examples" / "strategic_planner.json").read_text())
WHO = Principal(TenantId("default"), ProjectId("default"), "key:bench", frozenset(Scope))
BATCH = 25
_RULE = re.compile(r"^(?!package|import)[a-z0-9_]+\b", re.MULTILINE)
_HOUSE = """package sovereign.house

import rego.v1

default allow := false

allow if {
	data.sovereign.admission.allow
	every _, passed in checks { passed == true }
}

default all_failures := {}

all_failures := object.union(data.sovereign.admission.failures, failures) if not allow

decision := object.union(data.sovereign.admission.decision, {
	"allow": allow,
	"checks": object.union(data.sovereign.admission.checks, checks),
	"failures": all_failures,
})
"""


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Return the microseconds of each of `times` calls."""
    took = []
    for _ in range(times):
        start = time.perf_counter_ns()
        call()
        took.append((time.perf_counter_ns() - start) / 1_000)
    return took


def grown(folder: Path, *, rules: int = 0, tenants: int = 0) -> tuple[PolicyBundle, Entrypoint]:
    """Return the shipped policies grown to so many rules and tenants, and what asks all of those rules at once.

    A check is three rules, as in the shipped ones: its default, its condition, and the sentence of its failure.
    """
    shutil.copytree(PROJECT_ROOT / "policies", folder, ignore=shutil.ignore_patterns("*_test.rego"))
    heads = sum(len(_RULE.findall(path.read_text())) for path in folder.glob("*.rego"))
    names = [f"house_check_{n}" for n in range(max(0, rules - heads) // 3)]
    if names:
        checks = "checks := {\n" + "".join(f'\t"{name}": {name},\n' for name in names) + "}\n"
        (folder / "house.rego").write_text(_HOUSE + checks + "".join(_check(name, n) for n, name in enumerate(names)))
    listed = folder / "data" / "tenants.yaml"
    known = yaml.safe_load(listed.read_text())
    known |= {f"tenant-{n}": {"plan": "standard", "active": True} for n in range(tenants - len(known))}
    listed.write_text(yaml.safe_dump(known))
    entrypoint = Entrypoint("data.sovereign.house.decision", ADMISSION.checks | set(names)) if names else ADMISSION
    return load_bundle(folder), entrypoint


def _check(name: str, number: int) -> str:
    return f"""
default {name} := false

{name} if input.agent.cpu_milli < {1_000_000 + number}

failures["{name}"] := "Declare less than the bound number {number}." if not {name}
"""


def decisions(bundle: PolicyBundle, count: int, entrypoint: Entrypoint = ADMISSION) -> dict[str, float]:
    import regorus

    bare = regorus.Engine()
    for name, text in bundle.modules:
        bare.add_policy(name, text)
    bare.add_data_json(bundle.data_json)
    engine = RegorusPolicyEngine(bundle)
    plan = bundle.catalog.plan_of(WHO.tenant)
    assert plan
    spec = parse_registration(EXAMPLE).to_spec(plan.defaults.to_spec_defaults())

    def request() -> AdmissionRequest:
        return replace(admission_request(WHO, spec), entrypoint=entrypoint)

    prepared = request()
    text = prepared.input_json.decode()

    def raw() -> None:
        bare.set_input_json(text)
        bare.eval_rule_as_json(prepared.entrypoint.rule)

    def decision() -> None:
        assert decide(engine, request()).allow

    raw_us: list[float] = []
    decision_us: list[float] = []
    cold_us: list[float] = []
    timed(raw, BATCH), timed(decision, BATCH)
    gc.collect()
    for turn in range(count // BATCH):
        pair = [(raw, raw_us), (decision, decision_us)]
        for call, into in pair if turn % 2 else reversed(pair):
            took = timed(call, BATCH)
            into.extend(took)
            if call is decision:
                cold_us.append(took[0])
    in_a_row = timed(decision, count)
    raw_p50, decision_p50 = statistics.median(raw_us), statistics.median(decision_us)
    return {
        "raw_engine_us_p50": round(raw_p50, 1),
        "decision_us_p50": round(decision_p50, 1),
        "decision_us_p99": round(statistics.quantiles(in_a_row, n=100)[98], 1),
        "decision_cold_us_p50": round(statistics.median(cold_us), 1),
        "ratio": round(decision_p50 / raw_p50, 3),
    }


def registrations_per_s(registrar: Registrar, prefix: str, count: int, threads: int) -> float:
    """Return acknowledged registrations a second, each with two synced facts and one synced transaction."""
    body = {"capabilities": ["conversation"], "security_policy": {"resource_limits": {"cpu": "10m", "memory": "64Mi"}}}

    def work(number: int) -> None:
        for i in range(count // threads):
            agent = {"agent_id": f"{prefix}-{number}-{i}"}
            assert registrar.register(WHO, parse_registration(body | agent)).created

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        for done in [pool.submit(work, n) for n in range(threads)]:
            done.result()
        return count // threads * threads / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--decisions", type=int, default=4_000)
    parser.add_argument("--registrations", type=int, default=400, help="the default plan admits 1000 agents in all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.load(home=Path(home))
        result: dict[str, Any] = decisions(load_bundle(settings.policy_dir), options.decisions)
        for name, size in (("rules_300", {"rules": 300}), ("tenants_10000", {"tenants": 10_000})):
            bundle, entrypoint = grown(Path(home) / name, **size)
            found = decisions(bundle, options.decisions, entrypoint)
            result[name] = {key: found[key] for key in ("decision_us_p50", "decision_us_p99", "decision_cold_us_p50", "ratio")}
        wiring.sign_policies(settings)
        registrar = wiring.build_registrar(settings)
        registrar.recover()
        alone = registrations_per_s(registrar, "alone", options.registrations // 4, 1)
        together = registrations_per_s(registrar, "together", options.registrations, 8)
        registrar.close()
    print(f"one caller: {alone:.0f} registrations/s; eight callers: {together:.0f}/s")
    rate = round(together, 1)
    print(json.dumps(result | {"registrations_per_s": rate, "transaction_registrations_per_s": rate}))


if __name__ == "__main__":
    main()
