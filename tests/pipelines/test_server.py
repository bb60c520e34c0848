"""`make server` with real processes; one whole start for all."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from pipelines.server import POOL
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.settings import PREFECT_API_URL, temporary_settings
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
ENDLESS = """\
stages:
  endless:
    cmd: echo $$ > pid && sleep 600 && touch out.txt
    outs: [out.txt]
"""
Start = Callable[..., "Started"]


@dataclass(frozen=True)
class Started:
    process: "subprocess.Popen[bytes]"
    port: int
    environment: dict[str, str]
    log: Path

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self) -> SyncPrefectClient:
        with temporary_settings({PREFECT_API_URL: self.environment["PREFECT_API_URL"]}):
            return get_client(sync_client=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> Any:  # noqa: ANN401 - whatever it finds
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    started: list[Started] = []

    def begin(port: int | None = None) -> Started:
        folder, port = tmp_path_factory.mktemp("server"), port or free_port()
        environment = os.environ | {"PREFECT_HOME": str(folder / "home")}
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        environment["PREFECT_WORKER_QUERY_SECONDS"] = "1"  # it looks for runs every ten seconds by default
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.server", "--port", str(port)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(Started(process, port, environment, folder / "log"))
        return started[-1]

    yield begin
    for one in started:
        one.process.terminate()
        one.process.wait(timeout=60)


@pytest.fixture(scope="module")
def served(start: Start) -> Started:
    """A server whose worker is there."""
    served = start()
    wait_for(lambda: served.process.poll() is not None or b"started!" in served.log.read_bytes())
    assert served.process.poll() is None, served.log.read_text()
    return served


@pytest.fixture(scope="module")
def project(served: Started, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what `prefect deploy --all` needs, deployed."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "pipelines", project / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", project)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    environment = served.environment | {"PWD": str(project)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def test_a_port_in_use_is_told_in_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        refused = start(other.getsockname()[1])
        assert refused.process.wait(timeout=60) == 1
    text = refused.log.read_text()
    assert text == f"error: 127.0.0.1:{refused.port}: Address already in use; give another --host or --port\n"


@pytest.mark.parametrize(
    ("number", "who", "code", "message"),
    [
        (signal.SIGINT, "ours", 128 + signal.SIGINT, ""),
        (signal.SIGKILL, "server", 1, "error: the server ended by itself with exit code -9; "),
    ],
)
def test_nothing_is_left_of_a_start_that_is_broken_off(
    start: Start, number: int, who: str, code: int, message: str
) -> None:
    begun = start()
    (server,) = wait_for(begun.family)
    (server if who == "server" else begun.process).send_signal(number)
    assert begun.process.wait(timeout=60) == code
    assert not server.is_running()
    assert message in begun.log.read_text()


def test_a_server_answers_with_a_pool_and_a_worker_online(served: Started) -> None:
    with served.client() as client:
        assert client.api_healthcheck() is None
        pool = client.read_work_pool(POOL)
        (worker,) = client.request("POST", f"/work_pools/{POOL}/workers/filter", json={}).json()
    assert pool.type == "process"
    assert worker["status"] == "ONLINE"


def test_deploying_gives_what_prefect_yaml_says(served: Started, project: Path) -> None:
    wanted = YAML(typ="safe").load(project / "prefect.yaml")["deployments"]
    with served.client() as client:
        found = {deployment.name: deployment for deployment in client.read_deployments()}
    assert set(found) == {one["name"] for one in wanted}
    for one in wanted:
        deployment = found[one["name"]]
        assert deployment.tags == one["tags"]
        assert deployment.work_pool_name == one["work_pool"]["name"]
        assert deployment.entrypoint == one["entrypoint"]
        assert deployment.pull_steps == [
            {"prefect.deployments.steps.set_working_directory": {"directory": str(project)}}
        ]
        assert deployment.global_concurrency_limit is not None
        assert deployment.global_concurrency_limit.limit == one["concurrency_limit"]["limit"] == 1
        assert deployment.concurrency_options is not None
        assert deployment.concurrency_options.collision_strategy == "ENQUEUE"
        for schedule, told in zip(deployment.schedules, one.get("schedules", []), strict=True):
            has = {"active": schedule.active, "slug": schedule.slug} | schedule.schedule.model_dump()
            assert {key: has[key] for key in told} == told


def test_sigterm_ends_all_with_what_runs_and_the_run_is_shown_as_crashed(
    served: Started, project: Path, make_project: Callable[..., Path], has_ended: Callable[[int], bool]
) -> None:
    scratch = make_project(ENDLESS)
    (train,) = (
        one["name"]
        for one in YAML(typ="safe").load(project / "prefect.yaml")["deployments"]
        if one["entrypoint"] == "pipelines/train.py:train"
    )
    with served.client() as client:
        (deployment,) = client.read_deployments(
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[train]))
        )
        run = client.create_flow_run_from_deployment(deployment.id, parameters={"project": str(scratch)})
    wait_for((scratch / "pid").exists)
    family = served.family()
    assert any("sleep" in one.name() for one in family)

    began = time.monotonic()
    served.process.terminate()
    code = served.process.wait(timeout=60)

    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 20
    assert all(has_ended(process.pid) for process in family)
    with closing(sqlite3.connect(Path(served.environment["PREFECT_HOME"], "prefect.db"))) as database:
        (state,) = database.execute("SELECT state_name FROM flow_run WHERE name = ?", [run.name]).fetchone()
    assert state == "Crashed"
