"""What must stand in a policy is looked for, and what its tests do not reach is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster.admission import policy_tests
from cluster.admission.bundle import load_bundle
from cluster.admission.catalog import data_schemas
from cluster.admission.policy_check import check_policies
from cluster.admission.policy_tests import run_policy_tests
from cluster.errors import ConfigurationError
from tests.governors import POLICIES, changed_policies


def copy_of(folder: Path, file: str = "", old: str = "", new: str = "") -> Path:
    """A copy of the policies with one text of one file replaced."""
    copy = folder / "policies"
    shutil.copytree(POLICIES, copy)
    if file:
        text = (copy / file).read_text()
        assert old in text
        (copy / file).write_text(text.replace(old, new))
    return copy


def test_the_shipped_policies_are_in_order() -> None:
    """Every check has its default, its sentence and its test, and every question its rules."""
    assert check_policies(POLICIES) == ()


def test_the_shipped_policies_pass_their_tests_and_these_reach_their_rules() -> None:
    """On the embedded engine, and at least 95 % of the rules whole."""
    report = run_policy_tests(POLICIES)
    assert report.failed == ()
    assert len(report.tests) > 100
    assert report.rules > 200
    assert report.coverage_percent >= 95, report.uncovered


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("region.rego", "default node_in_region := false\n", "", "The check node_in_region has no default"),
        ("region.rego", 'own_failures["node_in_region"]', 'own_failures["node"]', "node_in_region has no sentence"),
        ("region_test.rego", "node_in_region", "elsewhere", "No test of region_test.rego names"),
        ("terms.rego", "default tools_follow := false", "default tools_follow := true", "passes on an empty input"),
        ("region.rego", "default allow := false", "default allow := true", "does not deny"),
        ("egress.rego", '\t"port_allowed": port_allowed,\n', "", "lacks the check port_allowed"),
        ("egress.rego", "package sovereign.egress", "package sovereign.outside", "no package sovereign.egress"),
        (
            "region.rego",
            "default allow := false",
            "default allow := false\n\nuntil := time.now_ns()",
            "can't be replayed",
        ),
    ],
)
def test_what_a_policy_lacks_is_named(tmp_path: Path, file: str, old: str, new: str, problem: str) -> None:
    """The file, and what to write."""
    found = check_policies(copy_of(tmp_path, file, old, new))
    assert [f for f in found if f.file == file.replace("_test", "") and problem in f.problem], found


def test_a_policy_without_tests_is_named(tmp_path: Path) -> None:
    """A rule file needs its `_test.rego`, with a test in it."""
    copy = copy_of(tmp_path)
    (copy / "region_test.rego").unlink()
    assert any("Write region_test.rego" in f.problem for f in check_policies(copy))


def test_rules_that_do_not_compile_are_no_finding_but_an_error(tmp_path: Path) -> None:
    """The place is said, and nothing else can be."""
    copy = copy_of(tmp_path, "region.rego", "default allow := false", "default allow :=")
    for look in (check_policies, run_policy_tests):
        with pytest.raises(ConfigurationError, match=r"region\.rego:\d+"):
            look(copy)


def test_a_failing_test_is_named(tmp_path: Path) -> None:
    """With the file and the rule's name."""
    copy = copy_of(tmp_path, "region.rego", 'input.agent.region == "unspecified"', 'input.agent.region == "any"')
    report = run_policy_tests(copy)
    assert [(t.file, t.name) for t in report.failed] == [("region_test.rego", "test_no_region_is_any_node")]


def test_a_rule_that_no_test_reaches_is_named(tmp_path: Path) -> None:
    """With its line; the percentage is of rules."""
    more = "default allow := false\n\nallow if {\n\tinput.friend == true\n\tinput.known == true\n}"
    report = run_policy_tests(copy_of(tmp_path, "region.rego", "default allow := false", more))
    assert report.failed == ()
    ((file, name),) = [(r.file, r.name) for r in report.uncovered]
    assert (file, name) == ("region.rego", "allow")
    assert report.coverage_percent == 100 * (report.rules - 1) / report.rules


def test_without_tests_nothing_is_covered(tmp_path: Path) -> None:
    """A folder without tests has reached nothing."""
    copy = copy_of(tmp_path)
    for path in copy.glob("*_test.rego"):
        path.unlink()
    report = run_policy_tests(copy)
    assert report.tests == ()
    assert report.coverage_percent < 20


def test_a_test_that_loops_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails by its deadline, and the run ends."""
    monkeypatch.setattr(policy_tests, "TEST_DEADLINE_US", 700_000)
    endless = "count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == 7]) > 0"
    copy = copy_of(
        tmp_path, "activation_test.rego", "test_unchanged_terms_wake if {", f"test_endless if {endless}\n\ntest_x if {{"
    )
    report = run_policy_tests(copy)
    assert [(t.name, t.error[:26]) for t in report.failed] == [("test_endless", "The policy took longer tha")]


def test_the_data_is_of_its_schema() -> None:
    """What editors are given holds for the shipped files."""
    schemas = data_schemas()
    assert {p.stem for p in (POLICIES / "data").glob("*.yaml")} == set(schemas)
    for name, schema in schemas.items():
        jsonschema.validate(yaml.safe_load((POLICIES / "data" / f"{name}.yaml").read_text()), schema)


@pytest.mark.parametrize(
    ("file", "place", "value", "named"),
    [
        ("plans.yaml", "trial.colour", "blue", "plans.trial.colour"),
        ("plans.yaml", "trial.regions", "eu", "plans.trial.regions"),
        ("plans.yaml", "trial.max_delegation_depth", -1, "plans.trial.max_delegation_depth"),
        ("regions.yaml", "eu.nodes", [], "regions.eu.nodes"),
        ("tools.yaml", "web_search.reads", [1], "tools.web_search.reads.0"),
        ("compliance.yaml", "GDPR.egress", [], "compliance.GDPR.egress"),
    ],
)
def test_a_field_that_the_schema_has_not_is_refused_and_named(
    tmp_path: Path, file: str, place: str, value: object, named: str
) -> None:
    """File and field; and an editor with the schema refuses it too."""
    copy = changed_policies(tmp_path, file, {place: value})
    with pytest.raises(ConfigurationError) as refused:
        load_bundle(copy)
    assert [e.field for e in refused.value.errors] == [named]
    name = file.removesuffix(".yaml")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load((copy / "data" / file).read_text()), data_schemas()[name])


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("tools.yaml", "web_search.reads", ["gossip"]),
        ("data_access_levels.yaml", "public.writes", ["gossip"]),
        ("compliance.yaml", "SOC2.regions.allowed", ["mars"]),
        ("compliance.yaml", "SOC2.providers.allowed", ["hal"]),
        ("plans.yaml", "trial.regions", ["mars"]),
    ],
)
def test_a_name_that_is_defined_nowhere_is_refused(tmp_path: Path, file: str, place: str, value: object) -> None:
    """A misspelt name would allow less than was meant, or more."""
    with pytest.raises(ConfigurationError, match="policy data") as refused:
        load_bundle(changed_policies(tmp_path, file, {place: value}))
    assert "which is not defined" in str(refused.value.errors)
