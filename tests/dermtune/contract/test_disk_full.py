"""On a real file system that is too small."""

import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dermtune.params import Params

IN_A_SMALL_DISK = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
SCRIPT = 'mount -t tmpfs -o size={size} tmpfs data && "$0" "$@"; code=$?; find data -type f; exit $code'


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(params: Params, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    YAML(typ="safe").dump(params.model_dump(mode="json"), tmp_path / "params.yaml")
    probe = [*IN_A_SMALL_DISK, SCRIPT.format(size="600k"), "true"]
    if subprocess.run(probe, cwd=tmp_path, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    command = [Path(sys.executable).parent / "dermtune", "ingest", "--out", "data/ingest"]
    full = subprocess.run(
        [*IN_A_SMALL_DISK, SCRIPT.format(size="600k"), *command],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert full.returncode == 2
    (line,) = [line for line in full.stderr.splitlines() if not line.startswith("ingest: ")]
    assert line == "error: the disk: No space left on device; make room and run it again"
    assert full.stdout == "", "no file is left behind"
