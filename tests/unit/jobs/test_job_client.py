"""What the client of jobs does when Ray's job server does not do as told, and what it does not send."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import jobs
from actors.jobs import JobClient
from cluster.errors import InvalidRequestError, UnavailableError
from cluster.identity.ids import ProjectId, TenantId
from cluster.identity.principal import Principal
from cluster.jobs.job import Job

WHO = Principal(TenantId("acme"), ProjectId("growth"), "key:3f9a", frozenset())


class Server:
    """A job server that takes the order to stop a job, and stops none."""

    def __init__(self) -> None:
        self.stopped: list[str] = []

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        return True

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        return SimpleNamespace(
            submission_id=job_id,
            status=SimpleNamespace(value="RUNNING"),
            message="",
            entrypoint="true",
            driver_exit_code=None,
            start_time=1,
            end_time=None,
            metadata={},
        )


@pytest.fixture
def client() -> JobClient:
    client = object.__new__(JobClient)
    client._client, client._host = Server(), "127.0.0.1"
    return client


def test_a_job_that_does_not_end_is_not_waited_for_for_ever(client: JobClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray only passes the order on: what it came to is asked for within bounds, and the error says how it stands."""
    looked: list[float] = []

    def sleep(seconds: float) -> None:
        looked.append(seconds)
        assert len(looked) < 10, "it is waited for without an end"

    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: float(next(ticks)), sleep=sleep))
    with pytest.raises(UnavailableError, match="is still running") as said:
        client.stop("run-1")
    assert "sovereign logs" in said.value.hint
    assert client._client.stopped == ["run-1"]


@pytest.mark.parametrize("name", ["actors/", "cluster/", "actors.py", "cluster.py"])
def test_a_working_folder_that_hides_the_platform_is_refused(client: JobClient, tmp_path: Path, name: str) -> None:
    """Ray puts it first on the path, where a module stands in for a package of its name as a folder does."""
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else path.write_text("")
    with pytest.raises(InvalidRequestError) as refused:
        client.submit(Job(WHO), ["true"], working_dir=tmp_path)
    assert name.strip("/") in refused.value.errors[0].message
