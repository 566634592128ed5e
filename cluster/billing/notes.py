"""What may follow a final invoice: a credit note that takes it back, a correction of what came late. Each is final itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cluster.billing.invoice import Billable, invoice, read, sealed
from cluster.errors import ConflictError

_KEY: Final = ("rule", "meter", "project", "agent", "model")


def credit_note(final: bytes, reason: str, index: int) -> bytes:
    """Return the note that takes a final invoice back whole: each line and tax at what was billed, with its sign turned.

    `index` counts the notes of the invoice from 1. Raises ConflictError for what is no invoice as it was made.
    """
    document = _invoice(final, "credited")
    turned = {
        "kind": "credit_note",
        "number": f"{document['number']}-C{index}",
        "of": document["number"],
        "of_digest": document["digest"],
        "reason": reason,
        "lines": [line | {"amount_e12": str(-int(line["amount_e12"])), "minor": -line["minor"]} for line in document["lines"]],
        "total_e12": str(-int(document["total_e12"])),
        "total_minor": -document["total_minor"],
        "taxes": [tax | {"minor": -tax["minor"]} for tax in document["taxes"]],
        "due_minor": -document["due_minor"],
    }
    return sealed({name: value for name, value in document.items() if name != "digest"} | turned)


def correction(final: bytes, earlier: Sequence[bytes], whole: Billable) -> bytes:
    """Return what is still due of a final invoice's period, now that `whole` is all that was used in it.

    `whole` has the invoice's own card, taxes and exchange rate, so that what came late costs what it would have cost in
    time; each line is the difference to what the invoice and its `earlier` corrections billed, and may be negative where
    more costs less. Raises ConflictError for another period, tenant, card or rate than the invoice's.
    """
    billed, now = _invoice(final, "corrected"), read(invoice(whole))
    for name in ("number", "currency", "card", "exchange", "held", "taxes"):
        if _terms(billed, name) != _terms(now, name):
            raise ConflictError(
                f"The correction of {billed['number']} has another {name} than the invoice.",
                hint="What came late is billed at the price of its own period.",
            )
    before = [billed, *(_of(billed, note) for note in earlier)]
    lines = _difference([now], before)
    total = sum(int(line["amount_e12"]) for line in lines)
    taxes = [
        tax | {"minor": tax["minor"] - sum(document["taxes"][i]["minor"] for document in before)}
        for i, tax in enumerate(now["taxes"])
    ]
    changed = {
        "kind": "correction",
        "number": f"{billed['number']}-K{len(before)}",
        "of": billed["number"],
        "of_digest": billed["digest"],
        "lines": lines,
        "total_e12": str(total),
        "total_minor": now["total_minor"] - sum(document["total_minor"] for document in before),
        "taxes": taxes,
        "due_minor": now["due_minor"] - sum(document["due_minor"] for document in before),
    }
    return sealed({name: value for name, value in now.items() if name != "digest"} | changed)


def _of(billed: Mapping[str, Any], note: bytes) -> dict[str, Any]:
    document = read(note)
    if (document["kind"], document.get("of_digest")) != ("correction", billed["digest"]):
        raise ConflictError(f"{document['number']} is no correction of {billed['number']}.", hint="Name that invoice's.")
    return document


def _invoice(final: bytes, what: str) -> dict[str, Any]:
    document = read(final)
    if document["kind"] != "invoice":
        raise ConflictError(f"{document['number']} is a {document['kind']} and can't be {what}.", hint="Name its invoice.")
    return document


def _terms(document: Mapping[str, Any], name: str) -> Any:
    if name == "taxes":
        return [(tax["name"], tax["basis_points"]) for tax in document["taxes"]]
    return document[name]


def _difference(now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of what is now less those of what was before, without those that come to nothing."""
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0])
    for sign, documents in ((1, now), (-1, before)):
        for line in (line for document in documents for line in document["lines"]):
            parts = sums[tuple(line[name] for name in _KEY)]
            for i, value in enumerate((line["quantity"], int(line["amount_e12"]), line["minor"])):
                parts[i] += sign * value
    return [
        dict(zip(_KEY, key, strict=True)) | {"quantity": quantity, "amount_e12": str(exact), "minor": minor}
        for key, (quantity, exact, minor) in sorted(sums.items())
        if quantity or exact or minor
    ]
