"""A rule file as its syntax tree shows it: which rules stand on which lines, and which functions they call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from cluster.admission.bundle import PolicyBundle, load_bundle
from cluster.admission.policy_engine import LOAD_DEADLINE_US, PolicyEngineError
from cluster.admission.regorus_process import RegorusProcess
from cluster.errors import ConfigurationError

TEST_SUFFIX: Final = "_test.rego"


@dataclass(frozen=True, slots=True)
class Rule:
    """One definition of a rule; a rule may have several. Lines count from 1 and are both included."""

    name: str
    # The literal key of `name["key"] := …`; empty without one.
    key: str
    first_line: int
    last_line: int
    # Whether it is `default name := false`.
    defaults_to_false: bool = False


@dataclass(frozen=True, slots=True)
class RuleFile:
    """One file of rules."""

    name: str
    # Without "data.": sovereign.admission.
    package: str
    rules: tuple[Rule, ...]
    # Name and line of each call of a function, ours or built in.
    calls: tuple[tuple[str, int], ...]

    @property
    def is_test(self) -> bool:
        """Whether it holds tests of another file."""
        return self.name.endswith(TEST_SUFFIX)


class RuleFolder:
    """A folder of policies with its tests, loaded in a process of its own; close it."""

    def __init__(self, folder: Path, *, coverage: bool = False) -> None:
        """Load it; raises ConfigurationError that names file and place."""
        self.bundle: PolicyBundle = load_bundle(folder)
        self.tests = tuple((p.name, p.read_text(encoding="utf-8")) for p in sorted(folder.glob(f"*{TEST_SUFFIX}")))
        self.process = RegorusProcess()
        modules = (*self.bundle.modules, *self.tests)
        try:
            self.process.load(modules, self.bundle.data_json, deadline_us=LOAD_DEADLINE_US, coverage=coverage)
            self.files = read_rule_files(self.process.ask(b"A", "", b"", LOAD_DEADLINE_US))
        except PolicyEngineError as e:
            self.process.end()
            raise ConfigurationError(f"The policy rules in {folder} can't be compiled: {e.detail}") from None

    def __enter__(self) -> RuleFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.end()


def read_rule_files(syntax_trees: bytes) -> tuple[RuleFile, ...]:
    """Return the files of the engine's syntax trees."""
    return tuple(_file(tree) for tree in orjson.loads(syntax_trees))


def _file(tree: dict[str, Any]) -> RuleFile:
    source = tree["source"]["contents"].encode()
    rules, calls = [], []
    for rule in tree["ast"]["rules"]:
        ((kind, body),) = rule.items()
        target = body["refr"] if kind == "Default" else next(iter(body["head"].values()))["refr"]
        span = body["span"]
        bracket = target.get("RefBrack")
        named = bracket["refr"] if bracket else target
        rules.append(
            Rule(
                name=_path(named),
                key=str(bracket["index"].get("String", {}).get("value", "")) if bracket else "",
                first_line=span["line"],
                last_line=span["line"] + source[span["start"] : span["end"]].count(b"\n"),
                defaults_to_false=kind == "Default" and body["value"].get("Bool", {}).get("value") is False,
            )
        )
        calls += [(_path(call["fcn"]), call["span"]["line"]) for call in _calls(body)]
    return RuleFile(tree["source"]["file"], _path(tree["ast"]["package"]["refr"]), tuple(rules), tuple(calls))


def _path(reference: dict[str, Any]) -> str:
    """Return a.b.c of a reference."""
    if "Var" in reference:
        return str(reference["Var"]["value"])
    if "RefDot" in reference:
        dot = reference["RefDot"]
        return f"{_path(dot['refr'])}.{dot['field'][1]}"
    if "RefBrack" in reference:
        bracket = reference["RefBrack"]
        return f"{_path(bracket['refr'])}.{bracket['index'].get('String', {}).get('value', '')}"
    return ""


def _calls(node: Any) -> Iterator[dict[str, Any]]:
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if "Call" in part:
                yield part["Call"]
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
