"""Runs the `test_` rules beside the policies on the embedded engine, and says which rules no test has reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from cluster.admission.policy_engine import PolicyEngineError
from cluster.admission.rule_file import RuleFile, RuleFolder

TEST_DEADLINE_US: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One test; it passed when its rule is true."""

    file: str
    name: str
    passed: bool
    # What the engine said when it gave no answer.
    error: str = ""


@dataclass(frozen=True, slots=True)
class UncoveredRule:
    """A rule that no test reached to its last line."""

    file: str
    name: str
    line: int


@dataclass(frozen=True, slots=True)
class PolicyTestReport:
    """What the tests of a folder said."""

    tests: tuple[RuleTest, ...]
    rules: int
    uncovered: tuple[UncoveredRule, ...]

    @property
    def failed(self) -> tuple[RuleTest, ...]:
        """The tests that did not pass."""
        return tuple(t for t in self.tests if not t.passed)

    @property
    def coverage_percent(self) -> float:
        """The share of rules that tests reached whole; of none it is 0."""
        return 100 * (self.rules - len(self.uncovered)) / self.rules if self.rules else 0.0


def run_policy_tests(folder: Path) -> PolicyTestReport:
    """Run every test of `folder`; raises ConfigurationError for a folder that can't be loaded."""
    with RuleFolder(folder, coverage=True) as loaded:
        tests = []
        for file in loaded.files:
            names = dict.fromkeys(r.name for r in file.rules if r.name.startswith("test_")) if file.is_test else {}
            for name in names:
                try:
                    answer = loaded.process.ask(b"E", f"data.{file.package}.{name}", b"{}", TEST_DEADLINE_US)
                    tests.append(RuleTest(file.name, name, answer == b"true"))
                except PolicyEngineError as e:
                    tests.append(RuleTest(file.name, name, passed=False, error=e.detail))
                    if not loaded.process.alive:
                        return PolicyTestReport(tuple(tests), 0, ())
        report = orjson.loads(loaded.process.ask(b"C", "", b"", TEST_DEADLINE_US))
        files = [f for f in loaded.files if not f.is_test]
        return PolicyTestReport(tuple(tests), sum(len(f.rules) for f in files), tuple(_uncovered(files, report)))


def _uncovered(files: list[RuleFile], report: dict[str, Any]) -> Iterator[UncoveredRule]:
    # A rule file that nothing was asked of is not in the report at all.
    reached = {f["path"]: set(f["covered"]) for f in report["files"]}
    missed = {f["path"]: set(f["not_covered"]) for f in report["files"]}
    for file in files:
        for rule in file.rules:
            lines = range(rule.first_line, rule.last_line + 1)
            if missed.get(file.name, set()).intersection(lines) or not reached.get(file.name, set()).intersection(lines):
                yield UncoveredRule(file.name, rule.name + (f'["{rule.key}"]' if rule.key else ""), rule.first_line)
