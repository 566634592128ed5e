"""A registration is of one form, or is refused with every wrong field by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.agents.registration import MAX_REGISTRATION_BYTES, parse_registration
from cluster.agents.spec import AgentSpec, Resources, SpecDefaults
from cluster.errors import IntegrityError, InvalidRequestError, PayloadTooLargeError
from cluster.settings import PROJECT_ROOT

DEFAULTS = SpecDefaults("assistant", "local:small", Resources(100, 256 << 20), "public", 7, ("outside",), ("SOC2",))
EXAMPLE: dict[str, Any] = json.loads((PROJECT_ROOT / "examples" / "strategic_planner.json").read_text())
LEAST = {"agent_id": "a", "capabilities": ["conversation"]}


def wrong_fields(body: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as refused:
        parse_registration(body)
    return {e.field: e.message for e in refused.value.errors}


def changed(path: str, value: Any) -> dict[str, Any]:
    body = json.loads(json.dumps(EXAMPLE))
    *folders, last = path.split(".")
    place = body
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return body


def test_the_example_is_taken_as_it_stands() -> None:
    """Example 1 becomes a spec with parsed resources and sorted names."""
    spec = parse_registration(json.dumps(EXAMPLE).encode()).to_spec(DEFAULTS)
    assert spec.resources == Resources(1000, 2 << 30)
    assert spec.capabilities == ("competitive_research", "market_analysis", "trend_forecasting")
    assert spec.allowed_tools == ("data_analysis", "report_generation", "web_search")
    assert (spec.agent_type, spec.data_access_level, spec.network_access) == (
        "planner",
        "strategic_read_only",
        ("external_apis",),
    )
    assert (spec.model, spec.max_iterations, spec.compliance) == ("local:small", 7, ("GDPR", "SOC2"))


def test_what_is_left_out_is_the_tenants_default() -> None:
    """Id and capabilities alone give an agent of the tenant's default policy, with all tools that follow."""
    spec = parse_registration(LEAST).to_spec(DEFAULTS)
    assert (spec.agent_type, spec.model, spec.resources, spec.allowed_tools) == (
        "assistant",
        "local:small",
        DEFAULTS.resources,
        None,
    )
    assert (spec.network_access, spec.compliance, spec.max_iterations) == (("outside",), ("SOC2",), 7)


def test_a_part_of_a_policy_is_completed() -> None:
    """One limit given leaves the others at the default; an empty list is a wish for none."""
    spec = parse_registration(
        LEAST | {"security_policy": {"resource_limits": {"cpu": "2"}, "allowed_tools": [], "network_access": []}}
    ).to_spec(DEFAULTS)
    assert spec.resources == Resources(2000, 256 << 20)
    assert (spec.allowed_tools, spec.network_access) == ((), ())


def test_the_digest_names_what_is_asked_and_not_how() -> None:
    """Order and repetition of names, and the form of a quantity, leave the digest as it is; anything else changes it."""
    same = changed("security_policy.resource_limits", {"memory": "2048Mi", "cpu": 1})
    same["capabilities"] = [*reversed(EXAMPLE["capabilities"]), "market_analysis"]
    digest = parse_registration(EXAMPLE).to_spec(DEFAULTS).digest
    assert parse_registration(same).to_spec(DEFAULTS).digest == digest
    for path, value in [
        ("model", "local:x"),
        ("instructions", "x"),
        ("replicas", 2),
        ("labels", {"a": "b"}),
        ("node_labels", {"a": "b"}),
    ]:
        assert parse_registration(changed(path, value)).to_spec(DEFAULTS).digest != digest


def test_a_spec_is_read_back_as_it_was() -> None:
    """A stored spec is the same spec; what is not one raises IntegrityError."""
    spec = parse_registration(EXAMPLE).to_spec(DEFAULTS)
    placed = parse_registration(changed("node_labels", {"zone": "a"})).to_spec(DEFAULTS)
    assert "node_labels" not in spec.to_json()  # or the digest of every spec from before would be another
    for whole in (spec, placed):
        assert AgentSpec.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    for broken in ({}, spec.to_json() | {"agent_id": "../x"}, spec.to_json() | {"labels": None}):
        with pytest.raises(IntegrityError):
            AgentSpec.from_json(broken)


def test_one_error_names_every_wrong_field() -> None:
    """A body with several wrong places is refused once, with the dotted path of each."""
    body = changed("security_policy.resource_limits.memory", "512m") | {"agent_id": "A", "capabilities": ["ok", "No"], "extra": 1}
    assert set(wrong_fields(body)) == {"agent_id", "capabilities.1", "security_policy.resource_limits.memory", "extra"}


@pytest.mark.parametrize("field", ["agent_id", "capabilities"])
def test_a_missing_field_is_named(field: str) -> None:
    """What has no default must be given."""
    assert wrong_fields({k: v for k, v in EXAMPLE.items() if k != field}) == {field: "is required"}


FIELDS = ["agent_id", "capabilities", "security_policy", "compliance_requirements", "model", "instructions", "labels", "replicas"]
FIELDS += ["max_replicas", "min_replicas", "target_queue", "node_labels"]
FIELDS += [f"security_policy.{f}" for f in EXAMPLE["security_policy"]] + ["security_policy.max_iterations"]
FIELDS += ["security_policy.resource_limits.cpu", "security_policy.resource_limits.memory"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_type_is_refused_and_named(field: str) -> None:
    """Null, and any value of another type, is an error of its field, also where the field may be left out (threat 27)."""
    for odd in (None, True, 1.5, {"a": 1}, [None], "\0", "\ud800", ["x", 3], -1):
        assert any(name == field or name.startswith(f"{field}.") for name in wrong_fields(changed(field, odd))), odd


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../b",
        "%2e%2e",
        "a\0b",
        "a\n",
        "\na",
        "a b",
        "",
        "-a",
        "a-",
        "A",
        "é",
        "аgent",
        "ａgent",
        "a" * 64,
        "a.b",
        "a_b",
    ],
    ids=ascii,
)
def test_an_odd_agent_id_is_refused(name: str) -> None:
    """Paths, escapes, NUL, newlines, look-alike letters and what is too long are no agent ids (threat 22)."""
    assert "agent_id" in wrong_fields(EXAMPLE | {"agent_id": name})


@pytest.mark.parametrize("odd", ["-1", "1e3", " 1", "", "512m", "9" * 30, "1 Gi", 1.5, None], ids=repr)
def test_an_odd_quantity_is_refused_and_named(odd: object) -> None:
    """A quantity that is none is an error of its field (threat 34)."""
    assert "security_policy.resource_limits.memory" in wrong_fields(changed("security_policy.resource_limits.memory", odd))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("capabilities", []),
        ("capabilities", ["c"] * 65),
        ("model", "gpt"),
        ("model", "a:b\n"),
        ("instructions", "x" * 16_385),
        ("labels", {"Bad Name": "x"}),
        ("labels", {"a": "b c"}),
        ("node_labels", {"zone": "!a"}),
        ("node_labels", {"zone": "in(a)"}),
        ("node_labels", {"zone": ""}),
        ("node_labels", {"sovereign-node": "n1"}),
        ("replicas", 0),
        ("max_replicas", 0),
        ("max_replicas", 65),
        ("min_replicas", 2),
        ("target_queue", 0),
        ("target_queue", 1025),
        ("security_policy.max_iterations", 0),
        ("security_policy.max_iterations", 101),
    ],
)
def test_a_value_out_of_bounds_is_refused(field: str, value: object) -> None:
    """Every list, text and number has a bound."""
    assert any(name.startswith(field) for name in wrong_fields(changed(field, value)))


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ({}, 0, 1),
        ({"replicas": 3}, 0, 3),
        ({"max_replicas": 3}, 0, 3),
        ({"min_replicas": 1}, 1, 1),
        ({"replicas": 2, "max_replicas": 4, "min_replicas": 2}, 2, 4),
    ],
)
def test_replicas_are_counted_by_the_most_that_may_be(asked: dict[str, int], least: int, most: int) -> None:
    """`replicas` stands for the most where that is left out, and all that may be count in the quota."""
    spec = parse_registration(EXAMPLE | asked).to_spec(DEFAULTS)
    assert (spec.min_replicas, spec.max_replicas, spec.target_queue) == (least, most, 8)
    assert spec.reserved == spec.resources.times(most)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"max_replicas": 2, "min_replicas": 3}, "min_replicas"),
        ({"replicas": 2, "min_replicas": 3}, "min_replicas"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas"),
    ],
)
def test_bounds_of_replicas_that_contradict_each_other_are_refused(asked: dict[str, int], field: str) -> None:
    """The field that can't be is named."""
    assert field in wrong_fields(EXAMPLE | asked)


def test_a_stored_spec_of_before_replicas_is_read() -> None:
    """It says how many there may be, and nothing more."""
    stored = parse_registration(EXAMPLE).to_spec(DEFAULTS).to_json()
    for name in ("max_replicas", "min_replicas", "target_queue"):
        del stored[name]
    assert AgentSpec.from_json(stored | {"replicas": 1}) == parse_registration(EXAMPLE).to_spec(DEFAULTS)


@pytest.mark.parametrize("body", [None, 1, "x", [], b"[]", b"null", b'"x"'], ids=repr)
def test_a_body_must_be_an_object(body: Any) -> None:
    """Anything but an object is an error of the body."""
    assert wrong_fields(body) == {"body": "must be an object"}


def test_a_body_of_bytes_is_bounded() -> None:
    """More than 64 KiB is refused before it is parsed."""
    with pytest.raises(PayloadTooLargeError):
        parse_registration(b" " * (MAX_REGISTRATION_BYTES + 1))


def test_the_fingerprint_is_of_what_was_said() -> None:
    """Key order does not count; a default that is said is not the same as one that is left out."""
    a, b = parse_registration(EXAMPLE), parse_registration(dict(reversed(EXAMPLE.items())))
    assert a.fingerprint() == b.fingerprint()
    assert parse_registration(EXAMPLE | {"replicas": 1}).fingerprint() != a.fingerprint()
