"""`dermtune predict` and `dermtune verify`, as a clinicians' team runs them."""

import csv
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from dermtune.cli import main
from dermtune_bundle import Bundle
from dermtune_bundle.bundle import write_bundle
from dermtune_bundle.errors import BundleError
from dermtune_bundle.graph import Graph, GraphOutput

TRAINING_PACKAGES = (
    "torch",
    "pandas",
    "pydantic",
    "timm",
    "sklearn",
    "albumentations",
    "dvc",
    "prefect",
    "scipy",
)
MAIN = "from dermtune.cli import main; main()"


class Finished(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Finished]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal on which no path of pytest's is broken into lines."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process."""

    def run(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["dermtune", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code
        assert isinstance(code, int)
        return Finished(code, *capsys.readouterr())

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 56), "red").save(folder / "red.png")
    Image.new("RGB", (56, 40), "blue").save(folder / "blue.png")
    return folder


def test_jsonl_has_one_object_an_image(run: Run, tiny_bundle: Path, images: Path) -> None:
    done = run("predict", tiny_bundle, images / "red.png", images, "--format", "jsonl")
    assert done.code == 0
    assert not done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [Path(row["path"]).name for row in rows] == ["red.png", "blue.png", "red.png"]
    assert [row["predicted"] for row in rows] == ["mel", "bcc", "mel"]
    assert set(rows[0]["probabilities"]) == {"mel", "nv", "bcc"}
    assert rows[0]["decisions"] == {"mel": True}
    assert rows[0]["bundle"]["version"] == Bundle.open(tiny_bundle).version
    assert "Research use only" in rows[0]["notice"]


def test_the_table_names_class_decision_bundle_and_notice(run: Run, tiny_bundle: Path, images: Path) -> None:
    done = run("predict", tiny_bundle, images)
    assert done.code == 0
    for text in ("red.png", "Melanoma", "yes", "Basal cell carcinoma", "no", "tiny", "Research use only"):
        assert text in done.out


def test_brackets_in_a_files_name_are_shown_as_they_are(run: Run, tiny_bundle: Path, images: Path) -> None:
    (images / "red.png").rename(images / "[red].png")
    assert "[red].png" in run("predict", tiny_bundle, images).out


def test_output_goes_to_a_file_whole(run: Run, tiny_bundle: Path, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    done = run("predict", tiny_bundle, images, "--format", "csv", "--output", path)
    assert done == (0, "", "")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == ["bcc", "mel"]
    assert run("predict", tiny_bundle, images, "-o", path).out == ""
    assert "Melanoma" in path.read_text()


def test_an_output_that_cannot_be_written_is_one_line(run: Run, tiny_bundle: Path, images: Path) -> None:
    done = run("predict", tiny_bundle, images, "--output", images / "red.png" / "answers")
    assert done.code == 2
    assert done.err == f"error: {images / 'red.png' / 'answers'}: cannot be written: File exists\n"


def test_a_bad_file_is_named_the_rest_goes_on_and_the_code_is_2(
    run: Run, tiny_bundle: Path, images: Path
) -> None:
    (images / "empty.jpg").touch()
    (images / "notes.txt").touch()
    done = run("predict", tiny_bundle, images, images / "absent.png", "--format", "jsonl")
    assert done.code == 2
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["predicted"] for row in rows] == ["bcc", None, "mel", None]
    assert rows[1]["error"] == f"{images / 'empty.jpg'}: empty file"
    assert done.err.splitlines() == [
        f"skipped, not image files: {images / 'notes.txt'}",
        f"error: {images / 'empty.jpg'}: empty file",
        f"error: {images / 'absent.png'}: No such file or directory",
        "2 of 4 images failed; see above",
    ]


def test_many_skipped_files_are_summed_up(run: Run, tiny_bundle: Path, images: Path) -> None:
    for number in range(8):
        (images / f"{number}.txt").touch()
    done = run("predict", tiny_bundle, images)
    assert done.err.rstrip().endswith("4.txt and 3 more")


def test_a_folder_without_images_is_an_error(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = run("predict", tiny_bundle, tmp_path / "none")
    assert done == (2, "", f"error: {tmp_path / 'none'}: no image files\n")


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_a_changed_bundle_is_refused_before_use(
    run: Run, tiny_bundle: Path, images: Path, command: str
) -> None:
    with (tiny_bundle / "MODEL_CARD.md").open("a") as file:
        file.write("better than doctors")
    done = run(command, tiny_bundle, *([images] if command == "predict" else []))
    assert done.code == 2
    assert not done.out
    assert done.err.startswith(
        f"error: {tiny_bundle / 'MODEL_CARD.md'}: its bytes are not those of SHA256SUMS"
    )


def test_verify_tells_name_version_and_notice(run: Run, tiny_bundle: Path) -> None:
    done = run("verify", tiny_bundle)
    assert done.code == 0
    assert done.out.splitlines()[:2] == [
        "ok: tiny, 3 classes",
        f"version: {Bundle.open(tiny_bundle).version}",
    ]
    assert "Research use only" in done.out


@pytest.mark.parametrize("command", ["predict", "verify"])
def test_help_teaches_with_an_example(run: Run, command: str) -> None:
    assert f"dermtune {command} data/export" in run(command, "--help").out


@pytest.mark.parametrize("kind", ["jsonl", "table"])
def test_a_progress_bar_on_the_terminal_leaves_the_answers_on_standard_output(
    tiny_bundle: Path, images: Path, kind: str
) -> None:
    ours, terminal = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "predict", tiny_bundle, images, "--format", kind],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env=os.environ | {"TERM": "xterm"},
        check=True,
    )
    drawn = os.read(ours, 100_000)
    os.close(terminal)
    os.close(ours)
    assert b"predict" in drawn
    assert b"red.png" in done.stdout
    assert b"\x1b" not in done.stdout


def test_predict_imports_nothing_of_the_training_side(tiny_bundle: Path, images: Path) -> None:
    program = (
        # a module that is None cannot be imported
        f"import sys; sys.modules.update(dict.fromkeys({TRAINING_PACKAGES})); {MAIN}"
    )
    for kind in ("table", "jsonl", "csv"):
        subprocess.run(
            [sys.executable, "-c", program, "predict", tiny_bundle, images, "--format", kind],
            check=True,
            capture_output=True,
        )


def test_answers_are_not_written_into_the_bundle(run: Run, tiny_bundle: Path, images: Path) -> None:
    done = run("predict", tiny_bundle, images, "--format", "jsonl", "--output", tiny_bundle / "answers.jsonl")
    assert done.code == 2
    assert "lies in the bundle, which must stay as it is" in done.err
    assert Bundle.open(tiny_bundle).version


def test_a_bundle_is_signed_packed_verified_and_a_wrong_key_refused(
    run: Run, tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    for stem in ("ours", "theirs"):
        assert "keep it secret" in run("keygen", tmp_path / stem).out
    packed = tmp_path / "bundle.zip"
    done = run("pack", tiny_bundle, packed, "--key", tmp_path / "ours.key")
    assert f"{packed}: version {Bundle.open(tiny_bundle).version}" in done.out
    verified = run("verify", packed, "--key", tmp_path / "ours.pub")
    assert verified.code == 0
    assert f"signed by: {Bundle.open(packed).claimed_key}, the key of {tmp_path / 'ours.pub'}" in verified.out
    assert "golden cases: 1, probabilities differ by" in verified.out
    assert "NOT CHECKED" in run("verify", packed).out
    assert "signed by: nobody" in run("verify", tiny_bundle).out
    for command in (("verify", packed), ("predict", packed, images)):
        refused = run(*command, "--key", tmp_path / "theirs.pub")
        assert refused.code == 2
        assert "SHA256SUMS.sig: signed by key" in refused.err
    assert run("predict", packed, images, "--key", tmp_path / "ours.pub").code == 0


def test_a_list_names_images_below_its_own_folder_alone(run: Run, tiny_bundle: Path, images: Path) -> None:
    (images / "out.png").symlink_to(tiny_bundle / "golden-0.png")
    listed = "path,note\nred.png,x\n../bundle/golden-0.png,y\n/etc/passwd,z\nout.png,z\n,\nblue.png,y\n"
    (images / "list.csv").write_text(listed, encoding="utf-8-sig")
    done = run("predict", tiny_bundle, images / "list.csv", "--format", "jsonl")
    assert [json.loads(line)["predicted"] for line in done.out.splitlines()] == ["mel", "bcc"]
    assert done.code == 2
    for number, named in ((3, "../bundle/golden-0.png"), (4, "/etc/passwd"), (5, "out.png"), (6, "")):
        line = f"error: {images / 'list.csv'}: line {number}: {named!r} is no file below {images}"
        assert line in done.err.splitlines()
    (images / "list.csv").write_text("file\nred.png\n")
    assert "has no column named path" in run("predict", tiny_bundle, images / "list.csv").err


def test_answers_as_parquet_and_pictures_of_where_it_looked(
    run: Run, tiny_bundle: Path, images: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    output, overlays = tmp_path / "answers.parquet", tmp_path / "looked"
    done = run("predict", tiny_bundle, images, "--format", "parquet", "-o", output, "--overlays", overlays)
    assert done.code == 0
    rows = parquet.read_table(output).to_pylist()
    assert [row["predicted"] for row in rows] == ["bcc", "mel"]
    assert rows[0]["bundle.version"] == Bundle.open(tiny_bundle).version
    for row in rows:
        with Image.open(row["overlay"]) as picture:
            assert picture.size in {(40, 56), (56, 40)}
    assert run("predict", tiny_bundle, images, "--format", "parquet").code == 2


def test_an_image_on_which_the_graph_fails_does_not_end_the_others(
    run: Run, tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_run = Graph.run

    def fails_on_blue(graph: Graph, image: np.ndarray) -> GraphOutput:
        if image[0, 0, 2] == 255:
            raise BundleError("model.onnx: fails on an image of shape (40, 56, 3)")
        return graph_run(graph, image)

    monkeypatch.setattr(Graph, "run", fails_on_blue)
    done = run("predict", tiny_bundle, images, "--format", "csv")
    assert done.code == 2
    rows = list(csv.DictReader(done.out.splitlines()))
    assert [row["predicted"] for row in rows] == ["", "mel"]
    assert rows[0]["error"] == f"{images / 'blue.png'}: model.onnx: fails on an image of shape (40, 56, 3)"


def test_a_machine_that_computes_otherwise_is_not_used(run: Run, tiny_bundle: Path, images: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    golden = (replace(manifest.golden[0], probabilities=(0.9, 0.05, 0.05)),)
    files = {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    write_bundle(
        tiny_bundle,
        model=files["model.onnx"],
        manifest=replace(manifest, golden=golden),
        card="x",
        further={"golden-0.png": files["golden-0.png"]},
    )
    for command in (("verify", tiny_bundle), ("predict", tiny_bundle, images)):
        done = run(*command)
        assert done.code == 2
        assert "this machine's probabilities differ" in done.err


def test_a_pipe_named_like_a_list_and_a_device_as_output_are_refused(
    run: Run, tiny_bundle: Path, images: Path
) -> None:
    os.mkfifo(images / "list.csv")
    done = run("predict", tiny_bundle, images / "list.csv", images / "red.png", "--format", "jsonl")
    assert done.code == 2
    assert done.err == f"error: {images / 'list.csv'}: not a regular file\n"
    assert json.loads(done.out)["predicted"] == "mel"
    assert (
        "no regular file, which would be replaced"
        in run("predict", tiny_bundle, images, "-o", "/dev/null").err
    )
    assert not Path("/dev/null").is_file()


def test_names_neither_run_as_formulas_nor_move_the_cursor(
    run: Run, tiny_bundle: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "red.png").rename(images / "=1+1.png")
    (images / "bad\n\x1b[2J.png").write_bytes(b"no image")
    done = run("predict", tiny_bundle, images, "--format", "csv")
    assert "\x1b" not in done.err
    assert "bad\\n\\x1b[2J.png: not a JPEG" in done.err
    monkeypatch.chdir(images)
    assert "\n'=1+1.png," in run("predict", tiny_bundle, "=1+1.png", "--format", "csv").out
