"""The figures in README come from benchmarks/: they must run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_side_by_side_comparison_runs_and_ends_with_its_ratio(tmp_path: Path) -> None:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["ingest"]["synthetic_lesions"] = 40
    params["backbone"]["input_size"] = 64
    yaml.dump(params, tmp_path / "params.yaml")
    command = [sys.executable, ROOT / "benchmarks/conventional.py", "--epochs", "1", "--views", "1"]
    files = ["--work", tmp_path / "work", "--plot", tmp_path / "curve.png"]
    # from a folder beside which there are no real images
    done = subprocess.run([*command, *files], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, strict, further, ratio = done.stdout.splitlines()
    assert strict.startswith("strict, 1 views")
    assert further.startswith("each further training")
    assert re.fullmatch(r"ratio: \d+\.\d", ratio)
    assert (tmp_path / "curve.png").is_file()
