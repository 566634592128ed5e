"""Quantities are read as Kubernetes writes them, once and exactly; whatever else looks like one is refused (threat 34)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.agents.quantity import MAX_CPU_MILLI, MAX_MEMORY_BYTES, format_cpu, format_memory, parse_cpu, parse_memory


@pytest.mark.parametrize(
    ("text", "milli"),
    [("1000m", 1000), ("1", 1000), (1, 1000), ("0.5", 500), ("1.25", 1250), ("250m", 250), ("1.0000", 1000), ("1k", 1_000_000)],
)
def test_cpu_is_read_in_thousandths(text: str | int, milli: int) -> None:
    """CPU in cores or in m gives the same whole number of thousandths."""
    assert parse_cpu(text) == milli


@pytest.mark.parametrize(
    ("text", "size"),
    [("2Gi", 2 << 30), ("512Mi", 512 << 20), ("1G", 10**9), ("1.5Gi", 3 << 29), ("4096", 4096), (4096, 4096), ("64Ti", 64 << 40)],
)
def test_memory_is_read_in_bytes(text: str | int, size: int) -> None:
    """Memory in decimal and binary units gives whole bytes."""
    assert parse_memory(text) == size


ODD = [
    "",
    " 1",
    "1 ",
    "-1",
    "+1",
    "1e3",
    "1E3",
    "1e",
    "0x10",
    "1,5",
    ".5",
    "1.",
    "1..2",
    "NaN",
    "inf",
    "١",
    "１",
    "1\n",
    "1\0",
    "Mi",
]
ODD += [
    "1mi",
    "1gi",
    "1KI",
    "1n",
    "1u",
    "9" * 19,
    "9" * 400,
    "1" + "0" * 18,
    "99999999999Ei",
    None,
    True,
    1.5,
    [1],
    {"a": 1},
    10**400,
    -1,
]


@pytest.mark.parametrize("parse", [parse_cpu, parse_memory])
def test_what_is_no_quantity_is_refused(parse: Callable[[Any], int]) -> None:
    """Signs, exponents, blanks, foreign digits, unknown suffixes, other types and what is too large raise ValueError."""
    for odd in ODD:
        with pytest.raises(ValueError):
            pytest.fail(f"{odd!r} was taken as {parse(odd)}")


@pytest.mark.parametrize("text", ["512m", "1000m", "0m"])
def test_memory_in_thousandths_of_a_byte_is_refused(text: str) -> None:
    """A memory in m is a slip of the pen for M, and the message says so."""
    with pytest.raises(ValueError, match="Mi"):
        parse_memory(text)


@pytest.mark.parametrize(("parse", "text"), [(parse_cpu, "0"), (parse_memory, "0"), (parse_cpu, "0.0001"), (parse_memory, "0.5")])
def test_nothing_and_less_than_the_least_are_refused(parse: Callable[[Any], int], text: str) -> None:
    """Zero, and fractions of a milli-CPU or of a byte, raise ValueError."""
    with pytest.raises(ValueError):
        parse(text)


@given(st.integers(1, MAX_CPU_MILLI), st.integers(1, MAX_MEMORY_BYTES))
def test_what_is_written_is_read_back(cpu_milli: int, memory_bytes: int) -> None:
    """Formatting and parsing are each other's inverse."""
    assert parse_cpu(format_cpu(cpu_milli)) == cpu_milli
    assert parse_memory(format_memory(memory_bytes)) == memory_bytes


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    """No text makes the parser fail in another way, or yields a number out of bounds."""
    for parse, most in ((parse_cpu, MAX_CPU_MILLI), (parse_memory, MAX_MEMORY_BYTES)):
        try:
            assert 1 <= parse(text) <= most
        except ValueError:
            continue
