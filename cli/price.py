"""`sovereign price`: check rate cards, and see what usage on record would cost under one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.exit_codes import ExitCode
from cli.options import Home, Json, settings_of
from cli.output import OUTPUT, table
from cluster.errors import ConfigurationError, NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.billing.rate_card import RateCard

app = typer.Typer(help="Check rate cards, and see what usage would cost under one.", no_args_is_help=True, rich_markup_mode=None)

Cards = Annotated[list[Path], typer.Argument(metavar="CARD...", help="Rate cards, as YAML.", show_default=False)]


@app.command()
def check(cards: Cards, as_json: Json = False) -> None:
    """Say what is wrong with rate cards: prices, tiers, meters, and versions that leave gaps or overlap."""
    from cluster.billing.rate_card import check_versions

    found: list[dict[str, str]] = []
    good: list[RateCard] = []
    for path in cards:
        try:
            good.append(_card(path))
        except ConfigurationError as e:
            found.append({"card": str(path), "problem": e.detail})
    for name in sorted({card.card for card in good}):
        try:
            check_versions([card for card in good if card.card == name])
        except ConfigurationError as e:
            found.append({"card": name, "problem": e.detail})

    def render(console: Console) -> None:
        if not found:
            console.print(f"{len(good)} rate cards are in order.", markup=False, highlight=False)
            return
        console.print(table(["card", "what is wrong"], [[f["card"], f["problem"]] for f in found]))

    OUTPUT.result({"cards": len(cards), "problems": found}, render)
    if found:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def simulate(
    card: Annotated[Path, typer.Argument(metavar="CARD", help="The rate card, as YAML.", show_default=False)],
    period: Annotated[
        str | None, typer.Option(help="A month such as 2026-01 [default: the last one].", show_default=False)
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show what a month's usage on record comes to under a card, before tax. Nothing is billed."""
    import orjson

    from cluster.billing.invoice import Billable, invoice
    from cluster.billing.period import Period
    from cluster.billing.used import COLUMNS, used_by_tenant
    from cluster.lake.query import usage_quantities

    rates = _card(card)
    month = Period.month(period or f"{_last_month():%Y-%m}")
    rows = usage_quantities(settings_of(home), month.begin, month.end, COLUMNS, tenant_id=tenant)
    bills = [
        orjson.loads(invoice(Billable(name, month, month, rates, used, [])))
        for name, used in sorted(used_by_tenant(rows).items())
    ]
    if tenant and not bills:
        raise NotFoundError(f"No usage of the tenant {tenant} is on record for that month.")
    said = [{name: bill[name] for name in ("tenant", "period", "currency", "lines", "total_minor")} for bill in bills]
    OUTPUT.result({"card": rates.card, "version": rates.version, "bills": said}, lambda console: _render(console, said))


def _render(console: Console, bills: list[dict[str, Any]]) -> None:
    from cluster.billing.money import major

    if not bills:
        console.print("No usage is recorded for that month.")
    for bill in bills:
        drawn = [
            [
                line["agent"],
                line["model"],
                line["rule"],
                line["meter"],
                f"{line['quantity']:,}",
                major(line["minor"], bill["currency"]),
            ]
            for line in bill["lines"]
        ]
        total = major(bill["total_minor"], bill["currency"])
        console.print(f"{bill['tenant']}: {total} {bill['currency']}", markup=False, highlight=False, style="bold")
        columns = ["agent", "model", "rule", "meter", "quantity", bill["currency"]]
        console.print(table(columns, drawn, right=columns[4:]))


def _card(path: Path) -> RateCard:
    from cluster.billing.rate_card import read_card

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"The rate card {path} can't be read: {e}.", hint="Name a YAML file.") from None
    return read_card(text, str(path))


def _last_month() -> datetime:
    return datetime.now(UTC).replace(day=1) - timedelta(days=1)
