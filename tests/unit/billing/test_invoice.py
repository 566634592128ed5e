"""The same inputs give the same bytes; lines are the total; what was changed is seen; a credit note takes all back."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.billing.invoice import Billable, NoTax, Source, Tax, invoice, read
from cluster.billing.notes import correction, credit_note
from cluster.billing.period import Period
from cluster.billing.rate_card import Meter
from cluster.billing.rating import Key, UnratedUsageError
from cluster.errors import ConflictError
from tests.unit.billing.cards import card

GOLDEN = Path(__file__).parent / "golden"
MARCH = Period.month("2026-03")
CARD = card(
    """\
  - {id: base, kind: flat, price: "20"}
  - id: tokens
    kind: matrix
    prices:
      "openai:*": {tokens_input_uncached: "2.5", tokens_cache_read: "1.25", tokens_output: "10", tokens_reasoning: "10"}
      "scripted:*": {tokens_input_uncached: "0", tokens_output: "0"}
  - {id: cpu, kind: per_unit, meter: cpu_us, price: "0.05", per: 3600000000}
  - {id: calls, kind: graduated, meter: calls, included: 100, per: 1000, tiers: [{up_to: 1000, price: "0.4"}, {price: "0.3"}]}
  - {id: tools, kind: package, meter: tool_calls, price: "1", size: 1000}
discounts: [{id: partner, basis_points: 1000, rules: [tokens]}]
free: [latency_us, queue_us, reserved_cpu_milli_ms, mem_mib_ms, tokens_cache_write]
"""
)
CHEF, CLERK = Key("kitchen", "chef", "openai:gpt-4o"), Key("office", "clerk", "scripted:ok")
USED = {
    (CHEF, Meter.INPUT): 1_234_567,
    (CHEF, Meter.CACHE_READ): 765_433,
    (CHEF, Meter.OUTPUT): 98_765,
    (CHEF, Meter.CALLS): 1_001,
    (CHEF, Meter.CPU): 7_777_777_777,
    (CHEF, Meter.QUEUE_TIME): 12,
    (CLERK, Meter.CALLS): 2_003,
    (CLERK, Meter.OUTPUT): 4_004,
    (CLERK, Meter.TOOL_CALLS): 1_001,
}
SOURCES = [Source(f"usage/events/v1/event_date=2026-03-0{day}/p{day}-0.parquet", f"{day:064x}") for day in (1, 2)]
BILLABLE = Billable("acme", MARCH, MARCH, CARD, USED, SOURCES, [Tax("VAT 20 %", 2000)], {"EUR": "0.8612"})


@pytest.mark.parametrize("kind", ["invoice", "credit-note"])
def test_an_invoice_is_the_bytes_that_it_always_was(kind: str) -> None:
    """Control: the format and the rules. A golden file changes with their version and never without."""
    final = invoice(BILLABLE)
    made = final if kind == "invoice" else credit_note(final, "agreed on 2026-04-02", 1)
    assert made == (GOLDEN / f"{kind}-1.json").read_bytes()


def test_it_does_not_matter_in_which_order_usage_and_files_come() -> None:
    """Nor from which of two equal mappings."""
    for seed in range(20):
        used = list(USED.items())
        random.Random(seed).shuffle(used)  # no secret
        assert invoice(replace(BILLABLE, used=dict(used), sources=SOURCES[::-1])) == invoice(BILLABLE), f"seed {seed}"


@given(quantities=st.lists(st.integers(0, 10**11), min_size=len(USED), max_size=len(USED)), tax=st.integers(0, 5000))
def test_lines_are_the_total_to_the_cent(quantities: list[int], tax: int) -> None:
    """For whatever was used: no cent is lost or made between them."""
    final = invoice(replace(BILLABLE, used=dict(zip(USED, quantities, strict=True)), taxes=[Tax("t", tax)]))
    document = read(final)
    assert sum(line["minor"] for line in document["lines"]) == document["total_minor"]
    assert all(line["minor"] >= 0 for line in document["lines"])
    assert read(credit_note(final, "r", 1))["due_minor"] == -document["due_minor"]


def test_what_an_invoice_depends_on_changes_it() -> None:
    """Usage, files, the card, the time it was held, tax and exchange rates; nothing else is in it."""
    half = MARCH.within(MARCH.begin.replace(day=16), None)
    others = [
        replace(BILLABLE, used=USED | {(CHEF, Meter.CALLS): 1_002}),
        replace(BILLABLE, sources=SOURCES[:1]),
        replace(BILLABLE, sources=[replace(SOURCES[0], row_digest="0" * 64), SOURCES[1]]),
        replace(BILLABLE, card=CARD.model_copy(update={"version": 2})),
        replace(BILLABLE, held=half),
        replace(BILLABLE, taxes=NoTax().taxes("acme", "USD", 1)),
        replace(BILLABLE, exchange={"EUR": "0.8613"}),
    ]
    assert len({invoice(each) for each in (BILLABLE, *others)}) == len(others) + 1


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d | {"total_minor": d["total_minor"] + 1},
        lambda d: d | {"tenant": "rival"},
        lambda d: d | {"lines": d["lines"][1:]},
        lambda d: {name: value for name, value in d.items() if name != "taxes"},
        lambda d: [d],
    ],
)
def test_what_was_changed_is_seen(change: object) -> None:
    """Control: read. A digit, a name, a line that is missing."""
    changed = orjson.dumps(change(orjson.loads(invoice(BILLABLE))), option=orjson.OPT_SORT_KEYS)  # type: ignore[operator]
    with pytest.raises(ConflictError):
        read(changed)


def test_a_digest_over_sums_that_are_wrong_does_not_help() -> None:
    """Whoever seals it again would still have to let its lines be its total."""
    import hashlib

    document = orjson.loads(invoice(BILLABLE))
    document["due_minor"] += 1
    del document["digest"]
    content = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    document["digest"] = hashlib.sha256(content).hexdigest()
    with pytest.raises(ConflictError, match="sums"):
        read(orjson.dumps(document, option=orjson.OPT_SORT_KEYS))


LATE = USED | {(CHEF, Meter.CALLS): 1_500, (Key("kitchen", "cook", "openai:gpt-4o"), Meter.OUTPUT): 777_777}


def test_threat_74_what_comes_late_is_a_correction_at_the_price_of_its_time() -> None:
    """Control: correction. The invoice stays as it is, and both together are what one invoice of all would have been."""
    final = invoice(BILLABLE)
    whole = replace(
        BILLABLE, used=LATE, sources=[*SOURCES, Source("usage/events/v1/event_date=2026-03-31/p9-0.parquet", "f" * 64)]
    )
    late, together = read(correction(final, [], whole)), read(invoice(whole))
    assert (late["kind"], late["of"], late["of_digest"]) == ("correction", read(final)["number"], read(final)["digest"])
    assert read(final)["due_minor"] + late["due_minor"] == together["due_minor"]
    assert {line["agent"]: line["quantity"] for line in late["lines"] if line["meter"] == "tokens_output"} == {"cook": 777_777}
    assert len(late["sources"]) == len(SOURCES) + 1
    nothing = read(correction(final, [], BILLABLE))
    assert (nothing["lines"], nothing["due_minor"]) == ([], 0)


def test_each_correction_is_of_all_before_it() -> None:
    """Control: the earlier ones. However often something comes late, all documents together are one invoice of it all."""
    final = invoice(BILLABLE)
    first = correction(final, [], replace(BILLABLE, used=LATE))
    later = LATE | {(CLERK, Meter.TOOL_CALLS): 5_000}
    second = correction(final, [first], replace(BILLABLE, used=later))
    documents = [read(each) for each in (final, first, second)]
    assert [d["number"][-2:] for d in documents[1:]] == ["K1", "K2"]
    assert sum(d["due_minor"] for d in documents) == read(invoice(replace(BILLABLE, used=later)))["due_minor"]
    assert [line["agent"] for line in documents[2]["lines"]] == ["clerk"]
    with pytest.raises(ConflictError, match="no correction of"):
        correction(final, [credit_note(final, "", 1)], BILLABLE)


def test_what_was_never_used_is_taken_back() -> None:
    """A line that is there no more has its whole amount returned."""
    fewer = {key: quantity for key, quantity in USED.items() if key[1] is not Meter.TOOL_CALLS}
    back = read(correction(invoice(BILLABLE), [], replace(BILLABLE, used=fewer)))
    assert [(line["rule"], line["quantity"], line["minor"]) for line in back["lines"] if line["rule"] == "tools"] == [
        ("tools", -1001, -200)
    ]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(BILLABLE, card=CARD.model_copy(update={"version": 2})), "another card"),
        (replace(BILLABLE, tenant="rival"), "another number"),
        (replace(BILLABLE, exchange={}), "another exchange"),
        (replace(BILLABLE, taxes=()), "another taxes"),
        (replace(BILLABLE, held=MARCH.within(MARCH.begin.replace(day=2), None)), "another held"),
    ],
)
def test_threat_76_a_correction_is_of_the_invoices_own_prices(other: Billable, named: str) -> None:
    """Control: correction. A later card, tenant or rate is no way to bill what is past."""
    with pytest.raises(ConflictError, match=named):
        correction(invoice(BILLABLE), [], other)
    with pytest.raises(ConflictError, match="credit_note"):
        correction(credit_note(invoice(BILLABLE), "", 1), [], BILLABLE)


def test_only_an_invoice_is_credited() -> None:
    """Not a note; and not what is no document at all."""
    note = credit_note(invoice(BILLABLE), "twice", 1)
    with pytest.raises(ConflictError, match="credit_note"):
        credit_note(note, "again", 2)
    with pytest.raises(ConflictError, match="no invoice"):
        credit_note(b"{", "", 1)


def test_usage_without_a_price_makes_no_invoice() -> None:
    """Control: rate. It blocks the invoice, and is not left out of it."""
    with pytest.raises(UnratedUsageError, match="anthropic:claude"):
        invoice(replace(BILLABLE, used=USED | {(Key("p", "a", "anthropic:claude"), Meter.OUTPUT): 1}))
