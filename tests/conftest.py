"""Every test run gets a folder of its own, and must end with nothing of it left: no process, no listener, no file."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.servers.cluster import RunningCluster

# The run must not depend on what the operator of this machine has set.
for _name in [name for name in os.environ if name.startswith("SOVEREIGN_") and name != "SOVEREIGN_SOAK"]:
    del os.environ[_name]

# Short, because the path of a Unix socket has 107 bytes in all and Ray takes most of them.
RUN_FOLDER = Path(f"/tmp/s{secrets.token_hex(3)}")
RUN_FOLDER.mkdir(mode=0o700)
os.environ["TMPDIR"] = tempfile.tempdir = str(RUN_FOLDER)
# Inherited by every process that a test starts, however deep. Not a SOVEREIGN_ name: those are replaced on the way.
os.environ["TEST_RUN_ID"] = RUN_ID = secrets.token_hex(8)

from tests.leftovers import foreign_files, marked_processes, open_listeners, wait_until_gone  # noqa: E402

# What ends the shared cluster, and the last test that uses it: those come first, so that it takes nothing from the others'.
ENDING = pytest.StashKey[contextlib.ExitStack]()
LAST_USER = pytest.StashKey[pytest.Item]()


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config) -> Iterator[RunningCluster]:
    """A ready cluster with room for many small agents, for every test that does not hurt it; others start their own."""
    ending = pytestconfig.stash[ENDING]
    yield ending.enter_context(shared_cluster())
    ending.close()


@contextlib.contextmanager
def shared_cluster() -> Iterator[RunningCluster]:
    from tests.governors import changed_policies
    from tests.servers.cluster import running_cluster

    home = RUN_FOLDER / "home"
    # One tenant more, whose jobs may have actors of their own.
    changed_policies(home, "tenants.yaml", {"free": {"plan": "trial", "active": True}})
    policies = changed_policies(home, "plans.yaml", {"trial.raw_actors": True})
    # A secret that must come up nowhere (tests/integration/test_secrets_stay.py).
    planted = RUN_FOLDER / "planted-key"
    planted.touch(mode=0o600)
    planted.write_text(f"planted-{secrets.token_hex(8)}")
    keys = f"openai=file:{planted}"
    with running_cluster(home, num_cpus=16, queue_limit=64, policy_dir=policies, model_keys=keys) as running:
        yield running
    shutil.rmtree(home)
    planted.unlink()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the files that use the shared cluster first, in their order, and the others after them."""
    users = [item for item in items if "cluster" in getattr(item, "fixturenames", ())]
    files = {item.path for item in users}
    items.sort(key=lambda item: item.path not in files)
    if users:
        config.stash[LAST_USER] = max(users, key=items.index)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """End the shared cluster with the last test that uses it."""
    yield
    if item is item.config.stash.get(LAST_USER, None):
        item.config.stash[ENDING].close()


@pytest.fixture(scope="session", autouse=True)
def _known_before() -> set[tuple[str, int]]:
    return open_listeners(set())


@pytest.fixture(scope="module", autouse=True)
def _no_listener_beyond_loopback(_known_before: set[tuple[str, int]]) -> Iterator[None]:
    """Fail the module after which a process of this run can be reached from another machine.

    Not after each test: the kernel takes 25 ms to print its tables.
    """
    yield
    if open_listeners(_known_before):
        ours = [line for pid in marked_processes(RUN_ID) for line in foreign_listeners_of(pid)]
        assert not ours, f"reachable from other machines: {ours}"


def foreign_listeners_of(pid: int) -> list[str]:
    from actors.listeners import is_loopback, listeners

    return [f"{x.address}:{x.port} (pid {pid})" for x in listeners([pid]) if not is_loopback(x.address)]


# A skip whose reason says this is right on every machine of that kind, and no missing component.
BY_DESIGN = "by design"
LEFT = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT] = []
    config.stash[ENDING] = contextlib.ExitStack()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one, so that a component that is missing there is seen."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        _, _, reason = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
        if BY_DESIGN not in reason:
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped in CI: {reason}"
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Look for what the run left behind, remove it, and fail the run that left it."""
    left = session.config.stash[LEFT]
    left += [f"process {p}" for p in wait_until_gone(RUN_ID, timeout_s=15)]
    left += [f"file {p}" for p in foreign_files(RUN_FOLDER)]
    if session.testsfailed and os.environ.get("CI") != "true" and any(RUN_FOLDER.rglob("*.jsonl")):
        left.append(f"the logs of what failed, kept for you: {RUN_FOLDER}")
    else:
        shutil.rmtree(RUN_FOLDER, ignore_errors=True)
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[LEFT]:
        terminalreporter.section("left behind by this run", red=True)
        for line in config.stash[LEFT]:
            terminalreporter.line(line, red=True)
