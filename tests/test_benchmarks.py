"""The figures in README come from benchmarks/: they must run."""

import csv
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


SCALING = (sys.executable, ROOT / "benchmarks/scaling.py", "--views", "1", "2", "--cuts", "5", "7")


def test_slopes_are_those_of_what_was_measured(tmp_path: Path) -> None:
    sizes = (100, 1000, 10_000, 100_000)
    with (tmp_path / "runs.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["stage", "images", "views", "cut", "seconds", "clock", "mebibytes", "megabytes"])
        for images in sizes:
            more = images - 100
            rows.writerow(["ingest", images, 0, 0, 20 + more**1.5, 9 + more, 300 + images / 500, images])
        for views in (1, 2):
            rows.writerow(["augment", 1000, views, 0, 20 + 3 * views, 9, 300, 12 * views])
    given = ["--images", *map(str, sizes), "--work", tmp_path, "--plot", tmp_path / "plot.png", "--plot-only"]
    done = subprocess.run([*SCALING, *given], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    slopes = "seconds ~ images^1.50 ± 0.00, clock ~ images^1.00 ± 0.00, megabytes ~ images^1.00 ± 0.00"
    assert f"slope of ingest: {slopes}, 2.0 ± 0.0 MiB for each 1,000 images" in done.stdout
    assert "slope of augment: 3.0 s and 12.0 MB for each view" in done.stdout
    assert (tmp_path / "plot.png").is_file()


@pytest.mark.slow
def test_scaling_runs_each_stage_once_and_leaves_nothing_but_its_table(tmp_path: Path) -> None:
    given = ["--images", "100", "200", "--base", "100", "--work", tmp_path]
    for _ in range(2):
        done = subprocess.run([*SCALING, *given], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    runs = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    # two sizes; of the smaller one, two views and two cuts, which share what comes before
    assert [run["stage"] for run in runs].count("ingest") == 2
    assert len(runs) == len({tuple(run.values())[:4] for run in runs}) == 2 + 3 + 4 + 4
    assert all(
        float(run[name]) > 0 for run in runs for name in ("seconds", "clock", "mebibytes", "megabytes")
    )
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "log.txt", "params.yaml"}
