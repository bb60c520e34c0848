from pathlib import Path

import pytest

from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.isic import confirmed_by, most_specific, one_hot, unlisted


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"MEL": "1.0", "NV": "0.0"}, "MEL"),
        ({"MEL": "0", "NV": "1"}, "NV"),
        ({"MEL": "1", "NV": "1"}, ""),
        ({"MEL": "0", "NV": "0"}, ""),
        ({"MEL": "0.4", "NV": "0.6"}, ""),
        ({"MEL": "x"}, ""),
    ],
)
def test_exactly_one_column_gives_the_label(row: dict[str, str], label: str) -> None:
    assert one_hot(row, ["MEL", "NV"]) == label


@pytest.mark.parametrize(
    ("row", "first", "label"),
    [
        ({"d_2": "Benign melanocytic", "d_3": "Nevus", "d_5": "Nevus, Spitz"}, "Benign", "Nevus, Spitz"),
        ({"d_2": "Benign melanocytic", "d_3": "", "d_4": "NaN"}, "Benign", "Benign melanocytic"),
        ({}, "Malignant", "malignant, not further said"),
        ({}, "Indeterminate", "Indeterminate"),
        ({}, "", ""),
    ],
)
def test_the_finest_word_is_the_label(row: dict[str, str], first: str, label: str) -> None:
    assert most_specific(row, "d_", first) == label


def test_words_for_how_a_diagnosis_was_confirmed() -> None:
    words = ("histopathology", "Serial imaging showing no change", "a second look", "", None)
    assert [confirmed_by(word) for word in words] == ["histo", "follow_up", "a second look", None, None]


def test_images_that_no_row_names_are_listed_once_and_masks_are_not(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "b.png", "a_segmentation.png"):
        (tmp_path / name).write_bytes(b"x")
    listed = [SourceImage("a", "a", "MEL", "a.jpg", bytes)]
    (found,) = unlisted(SourceFiles(tmp_path), listed, license="CC-0")
    assert (found.image_id, found.label, found.path, found.license) == ("b", "", "b.jpg", "CC-0")
