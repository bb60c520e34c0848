"""A team's remote: who clones and pulls has every byte, and nothing runs again."""

import os
import shutil
import subprocess
from contextlib import chdir
from pathlib import Path

import fsspec
import pytest
from dvc.cli import main

ROOT = Path(__file__).parents[1]
STAGE = """\
stages:
  ingest:
    cmd: echo ran >> $RUNS; mkdir -p data/ingest; cp images.txt data/ingest/; date > data/ingest/when
    deps: [images.txt]
    outs: [data/ingest]
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line for each time that the stage runs, in whichever clone."""
    monkeypatch.setenv("RUNS", str(tmp_path / "runs.txt"))
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "tester")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "tester@example.org")
    return tmp_path / "runs.txt"


@pytest.fixture
def project(tmp_path: Path, runs: Path) -> Path:
    """A project of one stage with our own settings of DVC, run once."""
    folder = tmp_path / "project"
    (folder / ".dvc").mkdir(parents=True)
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, folder / ".dvc")
    (folder / "dvc.yaml").write_text(STAGE)
    (folder / "images.txt").write_bytes(bytes(range(256)) * 100)
    git(folder, "init", "--quiet")
    dvc(folder, "repro")
    assert runs.read_text() == "ran\n"
    return folder


def git(folder: Path, *arguments: object) -> str:
    command = ["git", "-C", folder, *arguments]
    return subprocess.run(list(map(str, command)), check=True, text=True, stdout=subprocess.PIPE).stdout


def dvc(folder: Path, *arguments: object) -> None:
    """Call DVC's command line, in this process: starting one costs a second each time."""
    with chdir(folder):
        assert main(list(map(str, arguments))) == 0


def clone(project: Path) -> Path:
    """Commit everything, and clone it as a colleague would."""
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "ran")
    git(project, "clone", "--quiet", project, project.parent / "clone")
    return project.parent / "clone"


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data/ingest").iterdir()}


def test_a_clone_pulls_the_same_bytes_from_a_shared_folder_and_runs_nothing(
    project: Path, runs: Path, tmp_path: Path
) -> None:
    dvc(project, "remote", "add", "--default", "team", tmp_path / "shared")
    dvc(project, "push")
    colleague = clone(project)
    shutil.rmtree(project / ".dvc/cache")
    dvc(colleague, "pull")
    assert images(colleague) == images(project)
    dvc(colleague, "repro")
    assert runs.read_text() == "ran\n"


def test_a_clone_pulls_from_a_bucket_and_the_run_cache_spares_runs_that_no_commit_holds(
    project: Path, runs: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    dvc(project, "remote", "add", "--default", "team", f"{s3}/dvc")
    dvc(project, "remote", "modify", "--local", "team", "endpointurl", server)
    dvc(project, "push", "--run-cache")
    colleague = clone(project)
    assert "config.local" not in git(colleague, "ls-files"), "secrets stay here"
    dvc(colleague, "remote", "modify", "--local", "team", "endpointurl", server)
    dvc(colleague, "pull", "--run-cache")
    assert images(colleague) == images(project)
    (colleague / "dvc.lock").unlink()
    dvc(colleague, "repro")
    assert runs.read_text() == "ran\n"


def test_a_bucket_of_images_is_watched_as_a_folder_is(project: Path, runs: Path, s3: str) -> None:
    bucket = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket.pipe_file(f"{s3}/images/a.jpg", b"a")
    (project / "params.yaml").write_text(f"ingest:\n  path: {s3}/images\n")
    (project / "dvc.yaml").write_text(STAGE.replace("deps: [images.txt]", "deps: ['${ingest.path}']"))
    for content, times in ((b"a", 2), (b"a", 2), (b"b", 3)):
        bucket.pipe_file(f"{s3}/images/a.jpg", content)
        dvc(project, "repro")
        assert runs.read_text() == "ran\n" * times
