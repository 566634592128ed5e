"""What the README tells a new user to run, run as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cluster.settings import PROJECT_ROOT
from tests.servers.cluster import RunningCluster

README = (PROJECT_ROOT / "README.md").read_text()
ONE = "strategic-planner-001"


def test_the_application_developers_program_gets_an_answer(cluster: RunningCluster, tmp_path: Path) -> None:
    """From the folder that holds `.sovereign`; only the agent is another one, because this cluster has no language model."""
    (program,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert ONE in program
    cluster.register("of-the-readme", model="scripted:echo").raise_for_status()
    (tmp_path / ".sovereign").symlink_to(cluster.settings.home)
    command = [sys.executable, "-c", program.replace(ONE, "of-the-readme")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "What is the capital of France?" in done.stdout
    assert "completion_tokens=" in done.stdout


def test_the_readme_calls_the_agent_that_it_has_registered() -> None:
    """One agent all the way, and it is registered before it is called."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.S)
    registered = [i for i, block in enumerate(blocks) if "agents register --file examples/strategic_planner.json" in block]
    called = [i for i, block in enumerate(blocks) if re.search(rf"(invoke |model=\"){ONE}", block)]
    assert registered
    assert called
    assert registered[0] <= min(called)
    assert set(re.findall(r"[a-z-]+-\d{3}\b", README)) == {ONE}
