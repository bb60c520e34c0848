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


def test_links_to_folders_are_told_and_dicom_needs_no_suffix(images: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (images / "deep" / "link").symlink_to(tmp_path / "elsewhere")
    (images / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(20))
    (images / "README").write_text("x")
    found = find_images([images])
    assert images / "IM0001" in found.images
    assert images / "README" in found.skipped
    assert f"{images / 'deep/link'}: a link to a folder, which is not followed" in map(str, found.refused)


@pytest.mark.parametrize("content", [b"path\nb.png\nx\0y.png\n", b"path\nb.png\n\xe4.png\n", b"no\nx\n"])
def test_a_bad_list_does_not_lose_what_else_was_asked_for(images: Path, content: bytes) -> None:
    (images / "list.csv").write_bytes(content)
    (images / "loop.png").symlink_to(images / "loop.png")
    found = find_images([images / "list.csv", images / "b.png", images / "absent.csv"])
    assert images / "b.png" in found.images
    assert len(found.refused) == 2


def test_a_file_must_be_what_its_name_says(images: Path) -> None:
    (images / "b.png").rename(images / "b.jpg")
    with pytest.raises(ImageError, match=r"b\.jpg: named \.jpg, but holds PNG"):
        read_image(images / "b.jpg")


def test_a_file_of_several_pictures_makes_the_model_abstain(tiny_bundle: Path, tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (40, 56), "red"), Image.new("RGB", (40, 56), "blue")
    red.save(tmp_path / "two.tif", save_all=True, append_images=[blue])
    ((_, found),) = predict_files(Bundle.open(tiny_bundle), [tmp_path / "two.tif"])
    assert not isinstance(found, ImageError)
    assert found.abstain == ("the first of 2 in its file, the others not looked at",)
