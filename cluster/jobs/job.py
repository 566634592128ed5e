"""A job as its metadata says it: who submitted it, for which tenant, with which budget and labels."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final, Self

from cluster.errors import FieldError, InvalidRequestError
from cluster.identity.ids import Identifier, ProjectId, TenantId, uuid7_time_us
from cluster.identity.principal import Principal
from cluster.identity.roles import Scope
from cluster.telemetry.redaction import redact

PREFIX: Final = "sovereign."
LABEL: Final = PREFIX + "label."
MAX_LABELS: Final = 32
MAX_LABEL_CHARS: Final = 200
MAX_BUDGET_USD: Final = Decimal(1_000_000_000)


def operator(tenant: str = "default", project: str = "default", subject: str = "operator") -> Principal:
    """Return the principal of someone who holds the cluster's token and says no more than this of themselves."""
    return Principal(TenantId.parse(tenant, "tenant"), ProjectId.parse(project, "project"), subject, frozenset(Scope))


@dataclass(frozen=True, slots=True)
class Job:
    """Who a job works for."""

    principal: Principal
    # The invocation id of the job's usage row; empty until somebody begins to measure it.
    run: str = ""
    # Written down and shown; nothing stops the job at it.
    budget_usd: Decimal | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """Return this as the text that travels with the job; raises InvalidRequestError for what may not travel."""
        who = self.principal
        metadata = {
            PREFIX + "tenant": str(who.tenant),
            PREFIX + "project": str(who.project),
            PREFIX + "subject": who.subject,
            PREFIX + "scopes": " ".join(sorted(who.scopes)),
        }
        if self.run:
            metadata[PREFIX + "run"] = self.run
        if self.budget_usd is not None:
            metadata[PREFIX + "budget_usd"] = f"{self.budget_usd:f}"
        metadata |= {LABEL + name: value for name, value in self.labels.items()}
        Job.from_metadata(metadata)
        return metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self:
        """Return what `to_metadata` wrote. What is missing is as `operator` has it: a job of `ray job submit` may say nothing.

        Raises InvalidRequestError that names every entry that is wrong.
        """
        wrong: list[FieldError] = []
        said = {k.removeprefix(PREFIX): v for k, v in metadata.items() if k.startswith(PREFIX)}
        labels = {k.removeprefix("label."): v for k, v in said.items() if k.startswith("label.")}
        principal, run, budget = operator(), said.get("run", ""), None
        try:
            scopes = frozenset(map(Scope, said["scopes"].split())) if "scopes" in said else frozenset(Scope)
            tenant, project = TenantId(said.get("tenant", "default")), ProjectId(said.get("project", "default"))
            principal = Principal(tenant, project, said.get("subject", "operator"), scopes)
            if run:
                uuid7_time_us(run)
        except ValueError as e:
            wrong.append(FieldError("identity", str(e)))
        try:
            budget = parse_budget(said["budget_usd"]) if "budget_usd" in said else None
        except InvalidRequestError as e:
            wrong += e.errors
        wrong += _wrong_labels(labels)
        if wrong:
            raise InvalidRequestError("The job's metadata can't be taken.", errors=wrong)
        return cls(principal, run, budget, labels)


def parse_budget(text: str) -> Decimal:
    """Return an amount of dollars above 0 with at most 6 decimals; raises InvalidRequestError."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(0)
    if not amount.is_finite() or not 0 < amount <= MAX_BUDGET_USD or amount != round(amount, 6):
        fields = [FieldError("budget_usd", f"must be dollars above 0 with at most 6 decimals, as 12.50; got {text[:40]!r}")]
        raise InvalidRequestError("The budget can't be taken.", errors=fields)
    return amount


def parse_labels(given: Sequence[str]) -> dict[str, str]:
    """Return labels given as `name=value`; raises InvalidRequestError that names each wrong one."""
    labels: dict[str, str] = {}
    wrong: list[FieldError] = []
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or name in labels:
            wrong.append(FieldError("label", f"must be name=value, each name once; got {redact(each)[:80]!r}"))
        labels[name] = value
    wrong += _wrong_labels(labels)
    if wrong:
        raise InvalidRequestError("A label can't be taken.", errors=wrong)
    return labels


def entrypoint_of(command: Sequence[str]) -> str:
    """Return the command as one shell line; raises InvalidRequestError when it is empty or seems to hold a secret.

    The line is shown in Ray's dashboard, in its logs and in the process list.
    """
    line = shlex.join(command)
    if not line:
        raise InvalidRequestError("The job has no command.", hint="Give it at the end: sovereign job submit -- python work.py")
    if redact(line) != line:
        raise InvalidRequestError(
            "The job's command seems to hold a secret, and everyone with the cluster's token could read it: nothing was sent.",
            hint="Put the secret into a file that the cluster's user alone can read, and let the job read that file.",
        )
    return line


def _wrong_labels(labels: Mapping[str, str]) -> list[FieldError]:
    wrong: list[FieldError] = []
    for name, value in labels.items():
        try:
            Identifier(name)
        except ValueError as e:
            wrong.append(FieldError(f"label.{redact(name)[:80]}", str(e)))
            continue
        if not value.isprintable() or len(value) > MAX_LABEL_CHARS:
            wrong.append(FieldError(f"label.{name}", f"must be at most {MAX_LABEL_CHARS} printable characters"))
        elif redact(f"{name}={value}") != f"{name}={value}":
            wrong.append(FieldError(f"label.{name}", "seems to hold a secret, and labels are shown to everyone"))
    if len(labels) > MAX_LABELS:
        wrong.append(FieldError("label", f"must be at most {MAX_LABELS}; got {len(labels)}"))
    return wrong
