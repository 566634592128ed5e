"""Load from wrk, a compiled generator, so that what is measured is the server.

As fast as answers come, or at a rate: then connections send at random moments, whatever the answers to the others take, as
clients do that know nothing of each other.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """What wrk saw in one run."""

    rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    # Answers that are no 2xx.
    refused: int


def wrk(
    url: str,
    bodies: list[dict[str, object]],
    *,
    connections: int,
    seconds: float,
    headers: dict[str, str] | list[dict[str, str]],
    rate: float = 0,
    may_refuse: bool = False,
) -> Measured:
    """Post `bodies` in turn over `connections` kept connections for `seconds`; with a list, each body has headers of its own.

    With `rate` so many are sent a second, if there are connections enough. Raises RuntimeError when a call failed, which with
    `may_refuse` a refused one did not.
    """
    each = headers if isinstance(headers, list) else [headers] * len(bodies)
    binary = shutil.which("wrk")
    if binary is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(_script(bodies, each, 1000 * connections / rate if rate else 0))
        command = [binary, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "--latency", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    refused = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    errors = 0 if may_refuse else refused
    errors += sum(int(n) for line in re.findall(r"Socket errors: (.*)", output) for n in re.findall(r"\d+", line))
    if errors:
        raise RuntimeError(f"{errors} calls failed:\n{output}")
    rps = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if rps is None:
        raise RuntimeError(f"wrk printed no rate:\n{output}")
    p50, p95, p99 = (_percentile(output, p) for p in (50, 95, 99))
    return Measured(float(rps.group(1)), p50, p95, p99, refused)


def _percentile(output: str, percent: int) -> float:
    found = re.search(rf"^p{percent} (\d+) us$", output, flags=re.M)
    if found is None:
        raise RuntimeError(f"wrk printed no {percent}th percentile:\n{output}")
    return int(found.group(1)) / 1000


def _script(bodies: list[dict[str, object]], headers: list[dict[str, str]], pause_ms: float) -> str:
    lines = ["local bodies = {" + ", ".join(f"[==[{json.dumps(b)}]==]" for b in bodies) + "}"]
    tables = (", ".join(f"[{json.dumps(k)}] = {json.dumps(v)}" for k, v in h.items()) for h in headers)
    lines.append("local headers = {" + ", ".join(f'{{["content-type"] = "application/json", {t}}}' for t in tables) + "}")
    lines.append("local at = 0")
    lines.append(
        "request = function() at = at % #bodies + 1; return wrk.format('POST', nil, headers[at], bodies[at]) end",
    )
    if pause_ms:
        lines.append(f"delay = function() return math.floor(-math.log(1 - math.random()) * {pause_ms} + 0.5) end")
    lines.append(
        "done = function(_, latency) for _, p in ipairs({50, 95, 99}) do"
        " io.write(string.format('p%d %d us\\n', p, latency:percentile(p))) end end"
    )
    return "\n".join(lines)
