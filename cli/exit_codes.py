"""What the command's exit code says, so that a script can tell a refusal from a fault without reading words."""

from __future__ import annotations

from enum import IntEnum

from cluster.errors import SovereignError


class ExitCode(IntEnum):
    """One code for each thing that a script would do something different about."""

    OK = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    NOT_FOUND = 4
    UNAVAILABLE = 5
    UNAUTHENTICATED = 6
    CONFLICT = 7
    TIMED_OUT = 8
    INTERRUPTED = 130


MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "It was done.",
    ExitCode.FAILED: "The platform, an agent, its model or a job failed, or something that no other code names.",
    ExitCode.USAGE: "The command line, a setting or the request is wrong; nothing was done.",
    ExitCode.REFUSED: "Policy, a quota, a grant or a limit refused; the answer names every failed check.",
    ExitCode.NOT_FOUND: "There is no such agent, file or component.",
    ExitCode.UNAVAILABLE: "No cluster runs under this home, or a part of it is busy or away; trying again can help.",
    ExitCode.UNAUTHENTICATED: "The API key is missing or not known.",
    ExitCode.CONFLICT: "The thing is in another state than the command needs (it exists already, it runs already).",
    ExitCode.TIMED_OUT: "The deadline passed and the work was stopped.",
    ExitCode.INTERRUPTED: "Ctrl-C.",
}

# By the problem's HTTP status, which every error of the platform carries.
_BY_STATUS: dict[int, ExitCode] = {
    400: ExitCode.USAGE,
    401: ExitCode.UNAUTHENTICATED,
    403: ExitCode.REFUSED,
    404: ExitCode.NOT_FOUND,
    409: ExitCode.CONFLICT,
    408: ExitCode.TIMED_OUT,
    413: ExitCode.USAGE,
    415: ExitCode.USAGE,
    422: ExitCode.REFUSED,
    429: ExitCode.UNAVAILABLE,
    503: ExitCode.UNAVAILABLE,
    504: ExitCode.TIMED_OUT,
}


def exit_code_of(error: SovereignError) -> ExitCode:
    """Return the exit code that tells this error to a script."""
    if error.code == "configuration":
        return ExitCode.USAGE
    return _BY_STATUS.get(error.status, ExitCode.FAILED)
