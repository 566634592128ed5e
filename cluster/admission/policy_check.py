"""What a policy must have before it may decide, beyond being Rego: the form that makes a missing field a no."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from cluster.admission.policy_engine import DEADLINE_US, PolicyEngineError
from cluster.admission.questions import ENTRYPOINTS
from cluster.admission.rule_file import RuleFile, RuleFolder

# What does not follow from input and data alone: a decision must come out the same when it is replayed years later.
_IMPURE: Final = re.compile(r"^(time\.now_ns|rand\.|uuid\.rfc4122|http\.|net\.lookup|opa\.runtime|print$|trace$)")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a policy, with what to do about it. Line 0 is the whole file."""

    file: str
    line: int
    problem: str


def check_policies(folder: Path) -> tuple[Finding, ...]:
    """Return what is wrong with the policies of `folder`; raises ConfigurationError when they can't be loaded at all."""
    with RuleFolder(folder) as loaded:
        found = [*_impure_calls(loaded.files)]
        packages = {f.package: f for f in loaded.files if not f.is_test}
        texts = dict(loaded.tests)
        for name in ENTRYPOINTS:
            if f"sovereign.{name}" not in packages:
                found.append(
                    Finding(f"{name}.rego", 0, f"There is no package sovereign.{name}; its questions would all be denied.")
                )
        for file in packages.values():
            test = file.name.removesuffix(".rego") + "_test.rego"
            tested = any(r.name.startswith("test_") for f in loaded.files if f.name == test for r in f.rules)
            if not tested:
                found.append(Finding(file.name, 0, f"It has no tests. Write {test} beside it."))
            found += _without_default(file)
            if any(rule.name == "decision" for rule in file.rules):
                found += _decision(file, packages, texts, loaded)
    return tuple(sorted(set(found), key=lambda f: (f.file, f.line, f.problem)))


def _impure_calls(files: tuple[RuleFile, ...]) -> Iterator[Finding]:
    for file in files:
        for name, line in file.calls:
            if _IMPURE.match(name) and not file.is_test:
                yield Finding(file.name, line, f"{name} makes a decision that can't be replayed. Take it from the input instead.")


def _without_default(file: RuleFile) -> Iterator[Finding]:
    """Yield the checks that have a sentence and no default: on an input that lacks their field there would be no decision."""
    keys = {rule.key for rule in file.rules if rule.key and rule.name.endswith("failures")}
    for rule in file.rules:
        if rule.name in keys and not any(r.name == rule.name and r.defaults_to_false for r in file.rules):
            keys.discard(rule.name)
            text = f"The check {rule.name} has no default. Write `default {rule.name} := false` above it."
            yield Finding(file.name, rule.first_line, text)


def _decision(
    file: RuleFile, packages: Mapping[str, RuleFile], tests: Mapping[str, str], loaded: RuleFolder
) -> Iterator[Finding]:
    """Yield what is wrong with the decision of a file, as it answers to an empty input and as it is written."""
    try:
        answer = orjson.loads(loaded.process.ask(b"E", f"data.{file.package}.decision", b"{}", DEADLINE_US))
    except PolicyEngineError as e:
        yield Finding(file.name, 0, f"Its decision fails on an empty input: {e.detail}")
        return
    checks = answer.get("checks") if isinstance(answer, dict) else None
    if not isinstance(checks, dict) or not checks:
        yield Finding(file.name, 0, "Its decision has no checks on an empty input. Give every check `default … := false`.")
        return
    if answer.get("allow") is not False:
        yield Finding(file.name, 0, "It does not deny an empty input.")
    entrypoint = ENTRYPOINTS.get(file.package.removeprefix("sovereign."))
    for name in sorted((entrypoint.checks if entrypoint else frozenset()) - checks.keys()):
        yield Finding(file.name, 0, f"Its decision lacks the check {name}, without which it is denied.")
    for name, passed in sorted(checks.items()):
        yield from _check(file, name, passed, packages, tests)


def _check(
    file: RuleFile, name: str, passed: Any, packages: Mapping[str, RuleFile], tests: Mapping[str, str]
) -> Iterator[Finding]:
    # Its own, or of the package that it shares the check with.
    makers = [f for f in (file, *packages.values()) if any(r.name == name for r in f.rules)]
    if not makers:
        yield Finding(file.name, 0, f"The check {name} has no rule of its name.")
        return
    maker = makers[0]
    line = next(r.first_line for r in maker.rules if r.name == name)
    if passed is not False:
        yield Finding(maker.name, line, f"The check {name} passes on an empty input. It must be false unless it is shown.")
    if not any(r.key == name and r.name.endswith("failures") for r in (*maker.rules, *file.rules)):
        yield Finding(
            maker.name, line, f'The check {name} has no sentence. Write `failures["{name}"] := …` that says what to change.'
        )
    test = maker.name.removesuffix(".rego") + "_test.rego"
    if not re.search(rf"\b{re.escape(name)}\b", tests.get(test, "")):
        yield Finding(maker.name, line, f"No test of {test} names the check {name}.")
