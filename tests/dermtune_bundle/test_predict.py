"""Files and folders in, one record an image out; a bad file does not stop the rest."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermtune_bundle import Bundle, ImageError, Prediction, read_image
from dermtune_bundle.decode import MAX_BYTES
from dermtune_bundle.predict import find_images, predict_files, record, write_csv, write_jsonl


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images, a damaged one, a text, a link and a pipe, in nested folders."""
    folder = tmp_path / "images"
    (folder / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (40, 56), "red").save(folder / "b.png")
    Image.new("RGB", (56, 40), "blue").save(folder / "deep" / "er" / "a.JPG", "JPEG")
    (folder / "deep" / "damaged.png").write_bytes((folder / "b.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("not an image")
    (folder / "link.png").symlink_to(folder / "b.png")
    os.mkfifo(folder / "pipe.png")
    return folder


def test_folders_are_searched_in_order_and_what_is_skipped_is_told(images: Path) -> None:
    found = find_images([images])
    assert found.images == [images / "b.png", images / "deep/damaged.png", images / "deep/er/a.JPG"]
    assert found.skipped == [images / "notes.txt"]
    assert [str(error) for error in found.refused] == [
        f"{images / name}: a link or a device, which is not followed" for name in ("link.png", "pipe.png")
    ]


def test_a_named_file_is_read_whatever_its_suffix_and_though_it_is_a_link(images: Path) -> None:
    assert find_images([images / "notes.txt", images / "link.png"]).images == [
        images / "notes.txt",
        images / "link.png",
    ]
    assert read_image(images / "link.png").shape == (56, 40, 3)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.png", "No such file or directory"),
        ("pipe.png", "not a regular file"),
        ("deep", "not a regular file"),
        ("notes.txt", "not a JPEG, PNG, BMP, TIFF, WebP"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(images: Path, name: str, reason: str) -> None:
    with pytest.raises(ImageError, match=f"{name}: {reason}"):
        read_image(str(images / name))


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(ImageError, match=r"huge\.jpg: larger than 512 MiB"):
        read_image(huge)


def test_a_bad_file_yields_its_error_and_the_rest_goes_on(tiny_bundle: Path, images: Path) -> None:
    outcomes = dict(predict_files(Bundle.open(tiny_bundle), find_images([images]).images))
    predicted = {path.name: out.predicted for path, out in outcomes.items() if isinstance(out, Prediction)}
    assert predicted == {"b.png": "mel", "a.JPG": "bcc"}
    assert isinstance(outcomes[images / "deep/damaged.png"], ImageError)


def test_a_record_can_be_traced_and_read_back_from_json_and_csv(tiny_bundle: Path, images: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    path = images / "b.png"
    rows = [record(str(path), bundle, bundle.predict(read_image(path)))] * 2
    lines, table = io.StringIO(), io.StringIO()
    write_jsonl(rows, lines)
    write_csv(rows, table)
    read = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert read == rows
    assert read[0]["path"] == str(path)
    assert read[0]["bundle"] == {"name": "tiny", "version": bundle.version}
    assert "Research use only" in read[0]["notice"]
    assert sum(read[0]["probabilities"].values()) == pytest.approx(1)
    cells = list(csv.DictReader(io.StringIO(table.getvalue())))
    assert len(cells) == 2
    assert np.isclose(float(cells[0]["probabilities.mel"]), read[0]["probabilities"]["mel"])
    assert cells[0]["decisions.mel"] == "True"
    assert cells[0]["bundle.version"] == bundle.version


def test_no_records_make_an_empty_table() -> None:
    table = io.StringIO()
    write_csv([], table)
    assert not table.getvalue()
