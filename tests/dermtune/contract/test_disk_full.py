"""On a real file system that is too small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dermtune.params import Params

IN_A_SMALL_DISK = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
SCRIPT = 'mount -t tmpfs -o size={size} tmpfs data && "$0" "$@"; code=$?; find data -type f; exit $code'


def run_on(size: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run dermtune where data/ is a disk of a size; what it leaves there is on standard output."""
    (folder / "data").mkdir(exist_ok=True)
    probe = [*IN_A_SMALL_DISK, SCRIPT.format(size=size), "true"]
    if subprocess.run(probe, cwd=folder, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    command = [Path(sys.executable).parent / "dermtune", *map(str, arguments)]
    whole = [*IN_A_SMALL_DISK, SCRIPT.format(size=size), *command]
    return subprocess.run(whole, cwd=folder, check=False, capture_output=True, text=True)


def test_a_stage_that_the_disk_cannot_hold_is_not_begun(params: Params, tmp_path: Path) -> None:
    YAML(typ="safe").dump(params.model_dump(mode="json"), tmp_path / "params.yaml")
    done = run_on("600k", tmp_path, "ingest", "--out", "data/ingest")
    assert done.returncode == 2
    needs = r"error: data/ingest: ingest needs about [\d.]+ MB, and 0\.6 MB are free .* MB are missing"
    assert re.match(needs, done.stderr)
    assert done.stdout == "", "no file is left behind"


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(ingested: Path, tmp_path: Path) -> None:
    done = run_on("4k", tmp_path, "keep-splits", "--images", ingested, "--out", "data/splits.csv")
    assert done.returncode == 2
    assert done.stderr == "error: the disk: No space left on device; make room and run it again\n"
    assert done.stdout == "", "no file is left behind"
