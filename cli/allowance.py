"""The options that say what a project or a key may spend and how fast: `--budget day.tokens=1000 --limit concurrency=2`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

_WINDOWS = ("day", "month", "total")
_UNITS = ("tokens", "micro_usd")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")

Budget = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WINDOW.UNIT=AMOUNT",
        help="A bound of the budget, such as day.tokens=1000 or total.micro_usd=5000000; it may be given more than once.",
        show_default=False,
    ),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=AMOUNT",
        help="requests_per_minute, tokens_per_minute or concurrency; it may be given more than once.",
        show_default=False,
    ),
]
Unbounded = Annotated[bool, typer.Option("--none", help="Take all bounds away; the tenant's plan still holds.")]


def body_of(budget: list[str] | None, limit: list[str] | None, *, none: bool = False) -> dict[str, Any]:
    """Return the fields `budget` and `limits` that were asked for; raises typer.BadParameter."""
    if none and (budget or limit):
        raise typer.BadParameter("--none goes with no other bound.")
    body: dict[str, Any] = {"budget": {}, "limits": {}} if none else {}
    for text in budget or []:
        name, amount = _parsed(text, [f"{w}.{u}" for w in _WINDOWS for u in _UNITS])
        window, _, unit = name.partition(".")
        body.setdefault("budget", {}).setdefault(window, {})[unit] = amount
    for text in limit or []:
        name, amount = _parsed(text, _LIMITS)
        body.setdefault("limits", {})[name] = amount
    return body


def required(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a change; raises typer.BadParameter when nothing was asked for."""
    if not body:
        raise typer.BadParameter("Name a --budget, a --limit, or --none.")
    return body


def text_of(found: dict[str, Any]) -> str:
    """Return what a project or key is bounded by, as these options have it; "-" for nothing."""
    budget = [f"{w}.{u}={a}" for w, units in found["budget"].items() for u, a in units.items()]
    return " ".join([*budget, *(f"{name}={amount}" for name, amount in found["limits"].items())]) or "-"


def _parsed(text: str, known: tuple[str, ...] | list[str]) -> tuple[str, int]:
    name, _, amount = text.partition("=")
    if name not in known or not amount.isascii() or not amount.isdecimal():
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(known)}, followed by = and a whole number.")
    return name, int(amount)
