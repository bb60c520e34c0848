"""The templates of the Docker and Kubernetes pools: rendered as a worker does, and taken by a real server."""

import asyncio
import json
import re
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pipelines
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import find_placeholders
from prefect.workers.base import BaseJobConfiguration

import dermtune

POOLS = Path(pipelines.__file__).parent / "pools"
pytestmark = pytest.mark.usefixtures("server")  # without one, rendering would start one each time
kinds = pytest.mark.parametrize("kind", ["docker", "kubernetes"])


class Rendered(BaseJobConfiguration, extra="allow"):
    """What every worker makes of a template, with whatever keys its own kind has."""


def read(kind: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads((POOLS / f"{kind}.json").read_text())
    return template


def render(kind: str, **values: object) -> dict[str, Any]:
    rendered = asyncio.run(Rendered.from_template_and_values(read(kind), values, client=None))
    return rendered.model_dump()


def host_config(**values: object) -> dict[str, Any]:
    """What Docker's own client would ask of a daemon."""
    wanted = render("docker", **values)["container_create_kwargs"]
    host = {key: value for key, value in wanted.items() if key not in {"user", "working_dir"}}
    with closing(docker.APIClient(version="1.43", base_url="http://127.0.0.1:1")) as client:
        asked: dict[str, Any] = client.create_host_config(**host)
    return asked


def pod(**values: object) -> dict[str, Any]:
    found: dict[str, Any] = render("kubernetes", **values)["job_manifest"]["spec"]["template"]["spec"]
    return found


@kinds
def test_every_placeholder_is_a_variable_and_every_variable_is_used(kind: str) -> None:
    template = read(kind)
    placeholders = {one.name for one in find_placeholders(template["job_configuration"])}
    assert placeholders | {"env"} == set(template["variables"]["properties"]), "env is merged, not filled in"


def test_docker_asks_for_a_gpu_where_a_run_does() -> None:
    assert host_config()["DeviceRequests"] == []
    (asked,) = host_config(device_requests=[{"count": 1, "capabilities": [["gpu"]]}])["DeviceRequests"]
    assert (asked["Count"], asked["Capabilities"]) == (1, [["gpu"]])


def test_kubernetes_asks_for_a_gpu_where_a_run_does() -> None:
    selector, tolerations = {"nvidia.com/gpu.present": "true"}, [{"key": "nvidia.com/gpu"}]
    for gpus in (0, 1):
        values: dict[str, object] = {"gpus": 1, "node_selector": selector, "tolerations": tolerations}
        asked = pod(**values) if gpus else pod()
        assert asked["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == gpus
        assert asked["nodeSelector"] == (selector if gpus else {})
        assert asked["tolerations"] == (tolerations if gpus else [])


@kinds
@pytest.mark.parametrize(
    "values", [{}, {"workspace": "/data/clinic", "env": {"DERMTUNE_REGISTRY": "s3://x"}}]
)
def test_the_workspace_is_mounted_where_it_lies_and_its_code_runs(kind: str, values: dict[str, Any]) -> None:
    rendered = render(kind, **values)
    workspace = values.get("workspace", "/srv/dermtune")
    assert rendered["env"]["PYTHONPATH"] == f"{workspace}/src"
    assert rendered["env"].get("DERMTUNE_REGISTRY") == values.get("env", {}).get("DERMTUNE_REGISTRY")
    if kind == "docker":
        assert rendered["volumes"] == [f"{workspace}:{workspace}"]
        assert rendered["container_create_kwargs"]["working_dir"] == workspace
    else:
        (container,) = pod(**values)["containers"]
        assert container["workingDir"] == workspace
        assert container["volumeMounts"] == [{"name": "workspace", "mountPath": workspace}]
        assert pod()["volumes"][0]["persistentVolumeClaim"] == {"claimName": "dermtune"}


@kinds
def test_nothing_phones_home(kind: str) -> None:
    env = render(kind)["env"]
    for module in (pipelines, dermtune):
        switches = re.findall(r'setdefault\("([A-Z_]+)", "(\w+)"\)', Path(module.__file__).read_text())
        assert switches
        assert dict(switches).items() <= env.items()


def test_kubernetes_starts_no_second_writer_and_gives_no_rights() -> None:
    job = render("kubernetes")["job_manifest"]["spec"]
    assert job["backoffLimit"] == 0, "Prefect alone tries again"
    assert job["activeDeadlineSeconds"] > 0
    assert pod()["restartPolicy"] == "Never"
    assert pod(user=1001)["securityContext"]["runAsUser"] == 1001
    assert pod()["securityContext"]["runAsNonRoot"]
    assert not pod()["automountServiceAccountToken"]


def test_docker_gives_no_rights() -> None:
    asked = host_config()
    assert (asked["CapDrop"], asked["SecurityOpt"], asked["Init"]) == (["ALL"], ["no-new-privileges"], True)
    assert render("docker", user="1001:1001")["container_create_kwargs"]["user"] == "1001:1001"


def test_the_image_is_built_of_what_the_lock_and_the_source_hold() -> None:
    """No data, no secrets, no root; a COPY of more than the build may see would fail there."""
    lines = (POOLS / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    allowed = (POOLS / "Dockerfile.dockerignore").read_text().splitlines()[1:]
    assert allowed[0] == "*"
    assert {line.removeprefix("!") for line in allowed[1:]} == copied
    assert all((POOLS.parents[1] / name).exists() for name in copied)
    assert sum("--require-hashes" in line for line in lines) == 2
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]


@kinds
def test_a_server_takes_the_template(kind: str) -> None:
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name=f"gpu-{kind}", type=kind, base_job_template=read(kind))
        made = client.create_work_pool(pool)
        try:
            assert made.base_job_template == read(kind)
        finally:
            client.delete_work_pool(made.name)
