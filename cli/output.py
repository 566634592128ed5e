"""How the command speaks: results on stdout, progress and errors on stderr; with `--json`, one JSON document on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cli.exit_codes import ExitCode, exit_code_of
from cluster.errors import SovereignError

if TYPE_CHECKING:
    from rich.console import Console

# A table that is piped somewhere is not cut to a terminal's width.
PIPED_WIDTH = 200


class Output:
    """The one voice of a command: commands say what, this decides where and how."""

    def __init__(self) -> None:
        # Set by the option `--json`, before the command's own body runs.
        self.as_json = False

    def result(self, data: Any, render: Callable[[Console], None]) -> None:
        """Print the command's result: `data` as JSON, or what `render` draws for people."""
        if self.as_json:
            self.record(data)
        else:
            render(_console(sys.stdout))

    def record(self, data: Any) -> None:
        """Print one JSON document on a line of its own, whatever the mode."""
        print(json.dumps(data, ensure_ascii=False, default=_plain), flush=True)

    def note(self, text: str) -> None:
        """Tell a person what is going on, on stderr, where it disturbs no pipe."""
        _console(sys.stderr).print(f"· {printable(text)}", markup=False, highlight=False, style="dim", soft_wrap=True)

    @contextmanager
    def progress(self, first: str) -> Iterator[Callable[[str], None]]:
        """Yield a function that says which step runs now: a moving line on a terminal, else one line a step."""
        console = _console(sys.stderr)
        if self.as_json or not console.is_terminal:
            self.note(first)
            yield self.note
            return
        from rich.markup import escape

        with console.status(escape(first)) as status:
            yield lambda text: status.update(escape(printable(text)))

    def fail(self, error: SovereignError) -> ExitCode:
        """Say what went wrong, which fields, and what to do; return the exit code."""
        if self.as_json:
            self.record({"error": error.to_problem()})
            return exit_code_of(error)
        console = _console(sys.stderr)
        console.print(
            f"{type(error).title()}: {printable(error.detail)}", markup=False, highlight=False, style="bold red", soft_wrap=True
        )
        for field in error.errors:
            console.print(
                f"  {printable(field.field)}: {printable(field.message)}", markup=False, highlight=False, soft_wrap=True
            )
        if error.hint:
            console.print(printable(error.hint), markup=False, highlight=False, style="cyan", soft_wrap=True)
        if error.retry_after_s is not None:
            console.print(f"Try again in {error.retry_after_s:g} s.", markup=False, highlight=False)
        return exit_code_of(error)


OUTPUT = Output()


def printable(text: str) -> str:
    """Return `text` without the control characters by which a model or a log line could drive the reader's terminal."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "�" for c in text)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "", right: Sequence[str] = ()) -> Any:
    """Return a Rich table; `right` names the columns that hold numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(printable("" if cell is None else str(cell))) for cell in row))
    return drawn


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _console(stream: Any) -> Console:
    from rich.console import Console

    console = Console(file=stream, emoji=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console
