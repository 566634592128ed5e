"""The `sovereign` command: its parts, and the one place where an error becomes words and an exit code."""

from __future__ import annotations

import sys

import typer

from cli import (
    access_token,
    agents,
    audit,
    gangs,
    invoke,
    job,
    keys,
    limits,
    logs,
    nodes,
    policy,
    price,
    status,
    tenants,
    up,
    upgrade,
    usage,
    verify,
    version,
)
from cli.exit_codes import ExitCode
from cli.output import OUTPUT
from cluster.errors import InternalError, SovereignError

app = typer.Typer(
    name="sovereign",
    help="Run AI agents on your own machines, with a record of what was allowed, what was done and what it used.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(up.up)
app.command()(up.down)
app.command()(nodes.join)
app.command()(nodes.leave)
app.add_typer(nodes.app, name="nodes")
app.command()(status.status)
app.add_typer(agents.app, name="agents")
app.add_typer(tenants.app, name="tenants")
app.add_typer(keys.app, name="keys")
app.add_typer(policy.app, name="policy")
app.add_typer(price.app, name="price")
app.add_typer(gangs.app, name="gangs")
app.command()(invoke.invoke)
app.add_typer(job.app, name="job")
app.add_typer(access_token.app, name="token")
app.command()(usage.usage)
app.command()(limits.limits)
app.command()(audit.audit)
app.command()(upgrade.upgrade)
app.command()(verify.verify)
app.command()(logs.logs)
app.command()(version.version)


def main() -> None:
    """Run the command line of this process and exit with the code that says how it went."""
    try:
        app()
    except SovereignError as error:
        _show_where(error)
        sys.exit(OUTPUT.fail(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away, as `head` does. What it didn't read, nobody wants.
        sys.stderr.close()
        sys.exit(ExitCode.OK)
    except Exception as fault:
        _show_where(fault)
        wrapped = InternalError(
            f"This should not have happened: {type(fault).__name__}: {fault}",
            hint="Run it again with SOVEREIGN_LOG_LEVEL=DEBUG to see where.",
        )
        sys.exit(OUTPUT.fail(wrapped))


def _show_where(fault: BaseException) -> None:
    """Print the traceback when the operator asked for it; otherwise a sentence is all that anyone sees."""
    import traceback

    from cluster.settings import Settings

    try:
        level = Settings.load().log_level
    except SovereignError:
        return
    if level == "DEBUG":
        traceback.print_exception(fault)


if __name__ == "__main__":
    main()
