"""Results go to stdout, everything else to stderr, and nobody's words drive the reader's terminal."""

from __future__ import annotations

import json

import pytest

from cli.output import Output, printable, table
from cluster.errors import AdmissionDeniedError, FieldError

DENIED = AdmissionDeniedError("Refused.", hint="Ask for less.", errors=[FieldError("capability", "[red]x[/red] is not held")])


def test_an_error_is_a_sentence_its_fields_and_a_hint_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """A person reads what happened, which fields, and what to do; markup in a name is shown, not obeyed."""
    assert Output().fail(DENIED) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["Admission denied: Refused.", "  capability: [red]x[/red] is not held", "Ask for less."]


def test_with_json_an_error_is_one_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """A script reads the same problem document that HTTP answers with."""
    output = Output()
    output.as_json = True
    assert output.fail(DENIED) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": DENIED.to_problem()}
    assert err == ""


def test_progress_never_mixes_with_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    """`sovereign … --json | jq` works while steps are told on stderr."""
    output = Output()
    output.as_json = True
    with output.progress("first") as say:
        say("second")
    output.result({"a": 1}, lambda console: None)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": 1}
    assert err.splitlines() == ["· first", "· second"]


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\x9b31m", "a\rb", "\x7f"])
def test_control_characters_are_not_printed(text: str) -> None:
    """An answer of a model can't clear the screen, ring the bell or rewrite a line."""
    assert printable(text) != text
    assert not set(printable(text)) & set("\x1b\x07\x9b\r\x7f")


def test_a_piped_table_keeps_its_words_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """What goes into a file is not cut to the width of a terminal that is not there."""
    long = "x" * 90
    Output().result({}, lambda console: console.print(table(["a", "b"], [[long, None]])))
    assert long in capsys.readouterr().out
