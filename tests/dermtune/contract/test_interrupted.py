"""A run that is killed and started again ends as one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dermtune.params import Params


def start(folder: Path, ingested: Path, embedded: Path, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            *(Path(sys.executable).parent / "dermtune", command[0], "--params", folder / "params.yaml"),
            *("--images", ingested, "--activations", embedded, *command[1:]),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_when(process: "subprocess.Popen[str]", path: Path) -> None:
    """Kill the process as soon as the file is there; it gets no chance to clean up."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def folder(params: Params, tmp_path: Path) -> Path:
    finetune = params.finetune.model_copy(update={"epochs": 4, "head_epochs": 1, "ensemble": 2})
    values = params.model_copy(update={"finetune": finetune}).model_dump(mode="json")
    YAML(typ="safe").dump(values, tmp_path / "params.yaml")
    return tmp_path


@pytest.mark.slow
def test_a_finetune_that_is_killed_twice_resumes_to_the_same_bytes(
    folder: Path, ingested: Path, embedded: Path
) -> None:
    def finetune(name: str) -> "subprocess.Popen[str]":
        checkpoint = folder / name / "finetune.safetensors"
        return start(
            *(folder, ingested, embedded, "finetune"),
            *("--checkpoint", str(checkpoint), "--out", str(folder / name / "out")),
        )

    tails = ("tail-0", "tail-1")
    finish(finetune("whole"))
    for tail in tails:
        kill_when(finetune("killed"), folder / "killed" / f"finetune-{tail}.safetensors")
    output = finish(finetune("killed"))

    assert output.count("resumed after epoch") == len(tails)
    whole, killed = (
        {path.name: path.read_bytes() for path in (folder / name / "out").iterdir()}
        for name in ("whole", "killed")
    )
    assert whole == killed
    assert [path.name for path in (folder / "killed").iterdir()] == ["out"], "no checkpoint stays"
