"""`sovereign policy`: check, test and ask the policies of a folder, whether a cluster runs or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import policy_bundles
from cli.exit_codes import ExitCode
from cli.options import Json, settings_of
from cli.output import OUTPUT, table

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.admission.admission import Decision

app = typer.Typer(help="Check, test, ask and replace the policies.", no_args_is_help=True, rich_markup_mode=None)
policy_bundles.register(app)

# A bundle with more that no test reaches is not tested.
MIN_COVERAGE_PERCENT = 95.0
MAX_INPUT_BYTES = 64 << 10

Policies = Annotated[
    Path | None,
    typer.Option("--policies", help="Folder of the policies [default: SOVEREIGN_POLICY_DIR].", show_default=False),
]
Question = Annotated[
    str,
    typer.Argument(
        metavar="QUESTION",
        help="admission, activation, invocation, tool_call, egress, delegation, data_access, region or compliance.",
        show_default=False,
    ),
]
Input = Annotated[Path, typer.Option("--input", "-i", help="The input, a JSON file; - is stdin.", show_default=False)]


@app.command()
def check(policies: Policies = None, as_json: Json = False) -> None:
    """Say what is wrong with the policies: syntax, data, and checks without a default, a sentence or a test."""
    from cluster.admission.policy_check import check_policies

    folder = _folder(policies)
    found = check_policies(folder)
    data = {
        "policies": str(folder),
        "problems": [{"file": f.file, "line": f.line, "problem": f.problem} for f in found],
    }

    def render(console: Console) -> None:
        if not found:
            console.print(f"The policies in {folder} are in order.", markup=False, highlight=False)
            return
        rows = [[f.file + (f":{f.line}" if f.line else ""), f.problem] for f in found]
        console.print(table(["where", "what is wrong"], rows))

    OUTPUT.result(data, render)
    if found:
        raise typer.Exit(ExitCode.FAILED)


@app.command("test")
def run_tests(
    policies: Policies = None,
    coverage: Annotated[
        float, typer.Option("--coverage", min=0, max=100, help="Fail when tests reach less than this percentage of the rules.")
    ] = MIN_COVERAGE_PERCENT,
    as_json: Json = False,
) -> None:
    """Run the tests beside the policies, and say which rules none of them reaches."""
    from cluster.admission.policy_tests import run_policy_tests

    report = run_policy_tests(_folder(policies))
    percent = round(report.coverage_percent, 1)
    data = {
        "tests": len(report.tests),
        "failed": [{"file": t.file, "test": t.name, "error": t.error} for t in report.failed],
        "rules": report.rules,
        "coverage_percent": percent,
        "uncovered": [{"file": r.file, "line": r.line, "rule": r.name} for r in report.uncovered],
    }

    def render(console: Console) -> None:
        if report.failed:
            console.print(table(["failed", "test", "error"], [[t.file, t.name, t.error or "is not true"] for t in report.failed]))
        if report.uncovered:
            rows = [[f"{r.file}:{r.line}", r.name] for r in report.uncovered]
            console.print(table(["no test reaches", "rule"], rows))
        words = f"{len(report.tests)} tests, {len(report.failed)} failed; they reach {percent:g} % of {report.rules} rules."
        console.print(words, markup=False, highlight=False)

    OUTPUT.result(data, render)
    if report.failed or not report.tests or report.coverage_percent < coverage:
        raise typer.Exit(ExitCode.FAILED)


@app.command("eval")
def evaluate(question: Question, document: Input, policies: Policies = None, as_json: Json = False) -> None:
    """Print the decision on an input as JSON; exit 3 when it is no."""
    decision = _decide(question, document, policies)[0]
    OUTPUT.record(_public(question, decision))
    if not decision.allow:
        raise typer.Exit(ExitCode.REFUSED)


@app.command()
def explain(question: Question, document: Input, policies: Policies = None, as_json: Json = False) -> None:
    """Show every check of the decision on an input, passed or not, and what to change; exit 3 when it is no."""
    decision, checks = _decide(question, document, policies)
    failed = {f.name: f.message for f in decision.failed}
    if not checks.issuperset(failed) and len(failed) == 1:
        # The engine's own failure: no check was made, so none has passed.
        checks = frozenset()
    rows = [
        {"check": name, "passed": name not in failed, "sentence": failed.get(name, "")}
        # What failed first; a failure of the engine itself is no check of the policy's.
        for name in sorted({*checks, *failed}, key=lambda n: (n not in failed, n))
    ]

    def render(console: Console) -> None:
        verdict = "Allowed" if decision.allow else "Refused"
        words = f"{verdict} by {question} of revision {decision.revision} ({decision.digest[:12]})."
        console.print(words, markup=False, highlight=False, style="bold")
        shown = [["passed" if r["passed"] else "FAILED", r["check"], r["sentence"]] for r in rows]
        console.print(table(["", "check", "what to change"], shown))
        for label, names in (("Obligations", decision.obligations), ("Tools", decision.tools)):
            if names:
                console.print(f"{label}: {', '.join(names)}", markup=False, highlight=False)

    OUTPUT.result(_public(question, decision) | {"checks": rows}, render)
    if not decision.allow:
        raise typer.Exit(ExitCode.REFUSED)


@app.command()
def schema(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="A data file's name without .yaml [default: all].")] = "",
    as_json: Json = False,
) -> None:
    """Print the JSON schema of a data file, for editors; loading a bundle holds the files to the same."""
    from cluster.admission.catalog import data_schemas
    from cluster.errors import NotFoundError

    schemas = data_schemas()
    if name and name not in schemas:
        raise NotFoundError(f"There is no data file {name[:80]}.yaml.", hint=f"There are {', '.join(sorted(schemas))}.")
    OUTPUT.record(schemas[name] if name else schemas)


def _folder(policies: Path | None) -> Path:
    return settings_of(None, policy_dir=policies).policy_dir


def _decide(question: str, document: Path, policies: Path | None) -> tuple[Decision, frozenset[str]]:
    """Return the decision and the names of its checks.

    By the embedded engine, whatever the cluster's is: its OPA must not get rules that are only being tried.
    """
    from cluster import wiring
    from cluster.admission.admission import AdmissionRequest, decide
    from cluster.admission.bundle import load_bundle
    from cluster.admission.questions import ENTRYPOINTS
    from cluster.errors import FieldError, InvalidRequestError

    entrypoint = ENTRYPOINTS.get(question)
    if entrypoint is None:
        raise InvalidRequestError(
            f"The policies have no question {question[:80]!r}.",
            errors=[FieldError("QUESTION", f"must be one of {', '.join(ENTRYPOINTS)}")],
        )
    canonical = _read(document)
    engine = wiring.embedded_policy_engine(load_bundle(_folder(policies)))
    return decide(engine, AdmissionRequest(entrypoint, canonical)), entrypoint.checks


def _read(document: Path) -> bytes:
    """Return the input in the one form that is digested; raises NotFoundError, InvalidRequestError."""
    import sys

    import orjson

    from cluster.admission.strict_json import parse_strict_json
    from cluster.errors import NotFoundError

    try:
        if str(document) == "-":
            raw = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        else:
            with document.open("rb") as file:
                raw = file.read(MAX_INPUT_BYTES + 1)
    except OSError as e:
        raise NotFoundError(f"{document} can't be read: {e.strerror}.") from None
    return orjson.dumps(parse_strict_json(raw, max_bytes=MAX_INPUT_BYTES), option=orjson.OPT_SORT_KEYS)


def _public(question: str, decision: Decision) -> dict[str, Any]:
    return {"question": question, "decision_id": decision.decision_id, "allow": decision.allow} | decision.to_detail()
