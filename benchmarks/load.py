"""Load from wrk, a compiled generator, so that what is measured is the server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True)
class Measured:
    """What wrk saw in one run."""

    rps: float
    p50_ms: float
    p99_ms: float
    errors: int


def wrk(url: str, bodies: list[dict[str, object]], *, connections: int, seconds: float, headers: dict[str, str]) -> Measured:
    """Post `bodies` in turn over `connections` kept connections for `seconds`; raises RuntimeError when a call failed."""
    binary = shutil.which("wrk")
    if binary is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        script.write_text(_script(bodies, headers))
        command = [binary, "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "--latency", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    errors = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", output))
    errors += sum(int(n) for line in re.findall(r"Socket errors: (.*)", output) for n in re.findall(r"\d+", line))
    if errors:
        raise RuntimeError(f"{errors} calls failed:\n{output}")
    rps = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if rps is None:
        raise RuntimeError(f"wrk printed no rate:\n{output}")
    return Measured(float(rps.group(1)), _percentile(output, 50), _percentile(output, 99), errors)


def _percentile(output: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)\s*$", output, flags=re.M)
    if found is None:
        raise RuntimeError(f"wrk printed no {percent}th percentile:\n{output}")
    return float(found.group(1)) * _UNITS_MS[found.group(2)]


def _script(bodies: list[dict[str, object]], headers: dict[str, str]) -> str:
    lines = ["wrk.method = 'POST'", "wrk.headers['content-type'] = 'application/json'"]
    lines += [f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in headers.items()]
    lines.append("local bodies = {" + ", ".join(f"[==[{json.dumps(b)}]==]" for b in bodies) + "}")
    lines.append("local at = 0")
    lines.append("request = function() at = at % #bodies + 1; return wrk.format(nil, nil, nil, bodies[at]) end")
    return "\n".join(lines)
