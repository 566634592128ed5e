"""Where an agent may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.agents.placement import NODE_LABEL, Node, parse_node_labels, require_node, selector
from cluster.agents.spec import Resources
from cluster.errors import ConfigurationError, NoNodeError

SMALL = Resources(100, 1 << 20)


def node(name: str, cpu_milli: int = 4_000, *, alive: bool = True, **labels: str) -> Node:
    return Node(name, f"id-{name}", "127.0.0.1", alive, name == "head", Resources(cpu_milli, 8 << 30), labels)


def test_labels_are_read_as_they_are_written() -> None:
    """Blanks and an empty text are harmless."""
    assert parse_node_labels("") == {}
    assert parse_node_labels(" zone=a , disk=SSD.1 ,") == {"zone": "a", "disk": "SSD.1"}


@pytest.mark.parametrize(
    "text", ["zone", "zone=", "=a", "Zone=a", "zone=!a", "zone=in(a)", "zone=a,zone=b", f"{NODE_LABEL}=x", "a b=c"]
)
def test_an_odd_label_is_refused(text: str) -> None:
    """Also what Ray would take for an operator, and the platform's own label."""
    with pytest.raises(ConfigurationError):
        parse_node_labels(text)


def test_a_selector_names_what_is_asked_for_and_what_is_drained() -> None:
    """An agent that asks for nothing on a cluster that drains nothing has none, and Ray places it as it always did."""
    assert selector({}, ()) == {}
    assert selector({"zone": "a"}, {"n2", "n1"}) == {"zone": "a", NODE_LABEL: "!in(n1,n2)"}


def test_ray_takes_the_selector() -> None:
    """Its own check of selectors passes it."""
    from ray._private.label_utils import validate_label_selector

    assert validate_label_selector(selector({"zone": "a", "disk": "SSD.1"}, {"n1", "n2-x"})) is None


@pytest.mark.parametrize(
    ("wanted", "labels", "nodes", "cordoned", "words"),
    [
        (SMALL, {"zone": "b"}, [node("head", zone="a")], (), "labels that it asks for: zone=b"),
        (SMALL, {"zone": "b"}, [node("w", alive=False, zone="b")], (), "labels that it asks for"),
        (SMALL, {}, [node("head")], {"head"}, "drained"),
        (Resources(5_000, 1), {}, [node("head"), node("w")], (), "more than any node has"),
        (Resources(5_000, 1), {"zone": "b"}, [node("head", 9_000), node("w", zone="b")], (), "more than any node has"),
    ],
)
def test_what_no_node_can_hold_is_said_at_once(
    wanted: Resources, labels: dict[str, str], nodes: list[Node], cordoned: set[str], words: str
) -> None:
    """The error says which condition no node meets; nobody waits for what can't happen."""
    with pytest.raises(NoNodeError, match=words) as caught:
        require_node(wanted, labels, nodes, cordoned)
    assert caught.value.retry_after_s


@given(
    nodes=st.lists(
        st.builds(
            lambda i, cpu, alive, zone: node(f"n{i}", cpu, alive=alive, zone=zone),
            st.integers(0, 5),
            st.integers(0, 5_000),
            st.booleans(),
            st.sampled_from("ab"),
        ),
        max_size=5,
        unique_by=lambda n: n.name,
    ),
    cordoned=st.sets(st.sampled_from([f"n{i}" for i in range(6)])),
    cpu_milli=st.integers(0, 5_000),
    zone=st.sampled_from(["", "a", "b"]),
)
def test_it_is_refused_exactly_when_no_node_could_hold_it(
    nodes: list[Node], cordoned: set[str], cpu_milli: int, zone: str
) -> None:
    """What is not refused has a node that is there, labelled, not drained, and large enough; and the other way round."""
    labels, wanted = ({"zone": zone} if zone else {}), Resources(cpu_milli, 1)
    possible = [n for n in nodes if n.alive and n.has(labels) and n.name not in cordoned and n.could_hold(wanted)]
    try:
        require_node(wanted, labels, nodes, cordoned)
    except NoNodeError:
        assert not possible
    else:
        assert possible
