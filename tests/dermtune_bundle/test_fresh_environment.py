"""`pip install dermtune`, without extras, gives a working `dermtune predict`, and no torch."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).parents[2]
UV = (sys.executable, "-m", "uv", "--quiet")
LIMIT_MB = 200


def needed(package: str = "dermtune") -> set[str]:
    """The packages that a plain install brings, by the metadata of those installed here."""
    found: set[str] = set()
    waiting = [package]
    while waiting:
        try:
            requirements = [Requirement(line) for line in requires(waiting.pop()) or ()]
        except PackageNotFoundError:  # needed on other systems only
            continue
        plain = (each for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""}))
        names = {re.sub(r"[-_.]+", "-", each.name).lower() for each in plain}
        waiting += names - found
        found |= names
    return found


def pinned(names: set[str]) -> str:
    """The lines of requirements.lock, hashes and all, of some packages."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / "requirements.lock").read_text())
    return "\n".join(block for block in blocks if re.split(r"==", block, maxsplit=1)[0].strip() in names)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with dermtune's wheel and what the lock pins for it."""
    folder = tmp_path_factory.mktemp("fresh")
    lock, venv = folder / "base.lock", folder / "venv"
    lock.write_text(pinned(needed()))
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    subprocess.run([*UV, "venv", "--python", sys.executable, str(venv)], check=True)
    install = [*UV, "pip", "install", "--python", str(venv / "bin" / "python"), "--no-deps"]
    fetched = subprocess.run(
        [*install, "--require-hashes", "-r", str(lock)], check=False, capture_output=True, text=True
    )
    if re.search("Failed to fetch|error sending request|dns error|timed out", fetched.stderr):
        pytest.skip(f"no package index can be reached: {fetched.stderr.strip().splitlines()[-1]}")
    assert fetched.returncode == 0, fetched.stderr
    subprocess.run([*install, *map(str, folder.glob("dermtune-*.whl"))], check=True)
    return venv


def test_predict_runs_where_only_the_base_dependencies_are(
    environment: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 56), "red").save(tmp_path / "red.png")
    dermtune, image = str(environment / "bin" / "dermtune"), str(tmp_path / "red.png")
    command = [dermtune, "predict", str(tiny_bundle), image, "--format", "jsonl"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert not done.stderr
    answer = json.loads(done.stdout)
    assert answer["predicted"] == "mel"
    assert answer["probabilities"].keys() == {"mel", "nv", "bcc"}


def test_a_plain_install_is_small_and_has_no_training_package(environment: Path) -> None:
    site = next((environment / "lib").glob("python*/site-packages"))
    present = {path.name for path in site.iterdir()}
    assert not present & {
        "torch",
        "timm",
        "pandas",
        "pydantic",
        "sklearn",
        "dvc",
        "prefect",
        "albumentations",
    }
    assert {"dermtune", "dermtune_bundle", "onnxruntime", "PIL"} <= present
    assert (site / "dermtune_bundle" / "py.typed").exists()
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < LIMIT_MB * 10**6


def test_a_command_of_the_training_side_says_how_to_get_it(environment: Path) -> None:
    done = subprocess.run(
        [environment / "bin" / "dermtune", "check"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "pip install 'dermtune[train]'" in done.stderr


def test_a_bundle_in_a_bucket_says_what_reaches_it(environment: Path) -> None:
    command = [environment / "bin" / "dermtune", "verify", "s3://clinic/bundle.zip"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: s3://clinic/bundle.zip: stores are reached through fsspec: pip install 'dermtune[s3]'\n"
    )
