"""Stands in for the HAProxy binary that Ray Serve starts, and tightens the configuration that Serve wrote.

Serve's template binds its metrics page to every interface, opens its admin socket to every user, sets no limit on how
long a client may take to send a request, and splices requests, which hides clients that leave (decision 5). It also
passes on headers by which a client would steer Serve, and bytes in them on which Serve fails, and says "500 Internal Server
Error" of a gateway that is away.
This program rewrites the file that `-f` names and then becomes HAProxy. It is run by the interpreter alone
(`python -I -S`), so it imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import re
import sys
from http import HTTPStatus
from pathlib import Path

# How long a client may take to send a request's head, and how long an idle connection is kept.
HTTP_REQUEST_TIMEOUT = "10s"
KEEP_ALIVE_TIMEOUT = "75s"

# What an X-Request-ID of a client may be; any other is as if it had not been sent.
REQUEST_ID = "[A-Za-z0-9._-]{1,64}"
# Serve obeys these from anyone: they end or unbind a request, hide that its client left, and choose its replica.
# It takes - and _ for the same in some of them.
SERVE_HEADERS = (
    "^(x-request-timeout-seconds|x-request-disconnect-disabled|x[-_]session[-_]id|serve[-_]multiplexed[-_]model[-_]id)$"
)
# Of two request ids Serve takes one and the gateway the other, and both put theirs on the answer.
CLEANED = f"""\
    http-request del-header {SERVE_HEADERS} -m reg
    http-request del-header x-request-id if {{ req.fhdr_cnt(x-request-id) gt 1 }}
    http-request del-header x-request-id if !{{ req.fhdr(x-request-id) -m reg ^{REQUEST_ID}$ }}
    http-response set-header x-request-id %[res.fhdr(x-request-id,1)] if {{ res.fhdr_cnt(x-request-id) gt 1 }}
"""

# What HAProxy answers when no gateway does: status, code, what happened, what to do, and seconds for Retry-After.
ERRORS = {
    502: (502, "gateway_lost", "The gateway ended before it answered.", "The call may have run; usage says whether it did.", 0),
    503: (503, "unavailable", "No gateway is there to answer.", "One is started; retry in a moment.", 1),
    504: (504, "deadline_exceeded", "The gateway did not answer in time.", "The call was stopped.", 0),
}


def error_page(status: int) -> bytes:
    """Return the raw response for an error of HAProxy's own: problem details that OpenAI's clients can read as well."""
    status, code, what, then, retry_after_s = ERRORS[status]
    title = HTTPStatus(status).phrase
    error = {"message": f"{what} {then}", "type": "api_error", "param": None, "code": code}
    problem = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
        "detail": what,
        "hint": then,
        "error": error,
    }
    body = json.dumps(problem).encode()
    head = [
        f"HTTP/1.1 {status} {title}",
        "content-type: application/problem+json",
        f"content-length: {len(body)}",
        "cache-control: no-store",
    ]
    if retry_after_s:
        head.append(f"retry-after: {retry_after_s}")
    return "\r\n".join([*head, "", ""]).encode() + body


def tighten(config: str, host: str, pages: Path) -> str:
    """Return `config` with wildcard binds on `host`, a private admin socket, bounds on slow clients and cleaned requests.

    `pages` is the folder of `<status>.http`, one for each of ERRORS.
    """
    config = re.sub(r"^(\s*bind\s+)(?:\*|0\.0\.0\.0|\[::\]|::)?:(\d+)", rf"\g<1>{host}:\g<2>", config, flags=re.M)
    config = re.sub(r"^(\s*stats socket \S+ mode) 666", r"\g<1> 600", config, flags=re.M)
    if not re.search(r"^\s*timeout http-request", config, flags=re.M):
        bounds = f"    timeout http-request {HTTP_REQUEST_TIMEOUT}\n    timeout http-keep-alive {KEEP_ALIVE_TIMEOUT}\n"
        config = re.sub(r"^defaults\n", "defaults\n" + bounds, config, count=1, flags=re.M)
    config = re.sub(r"^frontend http_frontend\n", lambda found: found[0] + CLEANED, config, flags=re.M)
    config = re.sub(r"^(\s*errorfile) (50[234]) .*$", rf"\g<1> \g<2> {pages}/\g<2>.http", config, flags=re.M)
    # The gateway takes every path, so one that Serve knows no backend for means that no gateway is there yet; without
    # Serve's 404 the backend has no server, and says 503.
    config = re.sub(r"^(backend default_backend\n)\s*http-request return status 404 .*\n", r"\g<1>", config, flags=re.M)
    # With spliced requests HAProxy 2.8 often does not pass on that the client went away: it spins, and the call runs on.
    return re.sub(r"^\s*option splice-request\n", "", config, flags=re.M)


def main(argv: list[str]) -> None:
    """Rewrite the configuration and become the binary: `argv` is [host, binary, *haproxy's own arguments]."""
    host, binary, *arguments = argv
    if "-f" in arguments:
        at = arguments.index("-f") + 1
        source = Path(arguments[at])
        target = source.with_suffix(".tight.cfg")
        for status in ERRORS:
            (source.parent / f"{status}.http").write_bytes(error_page(status))
        target.write_text(tighten(source.read_text(), host, source.parent))
        arguments[at] = str(target)
    os.execv(binary, [binary, *arguments])  # noqa: S606  # becoming HAProxy is the whole point


if __name__ == "__main__":
    main(sys.argv[1:])
