"""Training cases in a bundle: the nearest first, and no more told than allowed."""

import io
from dataclasses import replace

import numpy as np
import pytest

from dermtune_bundle.cases import CASES, EMBEDDINGS, Cases
from dermtune_bundle.errors import BundleError

CLASSES = ("mel", "nv")


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, values=np.zeros((3, 2), np.float16))
    return file.getvalue()


@pytest.fixture
def cases() -> Cases:
    embeddings = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float16)
    return Cases(embeddings, ["mel", "nv", "nv"], ["a", "b", "c"], [b"A", b"B", b"C"])


def test_the_nearest_come_first_with_what_is_known_of_them(cases: Cases) -> None:
    found = cases.nearest(np.array([0, 7], np.float32), 2)
    assert [case.image_id for case in found] == ["c", "b"]
    assert found[0].label == "nv"
    assert found[0].thumbnail == b"C"
    assert [case.similarity for case in found] == pytest.approx([1, 0.8], abs=1e-3)


def test_files_give_the_cases_back_and_no_more_than_was_told(cases: Cases) -> None:
    told = replace(cases, ids=None, thumbnails=None)
    files = told.to_files()
    assert b'"a"' not in files[CASES]
    read = Cases.from_files(files, CLASSES, source="x")
    assert read is not None
    assert np.array_equal(read.embeddings, cases.embeddings)
    assert (read.labels, read.ids, read.thumbnails) == (["mel", "nv", "nv"], None, None)
    full = Cases.from_files(cases.to_files(), CLASSES, source="x")
    assert full is not None
    assert full.thumbnails == [b"A", b"B", b"C"]
    assert Cases.from_files({}, CLASSES, source="x") is None


@pytest.mark.parametrize(
    "change",
    [
        {EMBEDDINGS: b"\x93NUMPY\x01\x00" + b"\xff" * 100},  # a header that claims to be long
        {EMBEDDINGS: b"\x80\x04N."},  # a pickle
        {EMBEDDINGS: npz()},
        {EMBEDDINGS: npy(np.full((3, 2), np.nan, np.float16))},
        {CASES: b"[]"},
        {CASES: b'{"labels": ["mel"], "ids": null, "thumbnails": null}'},
        {CASES: b'{"labels": ["mel", "nv", "df"], "ids": null, "thumbnails": null}'},
        {CASES: b'{"labels": ["mel", "nv", "nv"], "ids": [1, 2, 3], "thumbnails": null}'},
        {CASES: b'{"labels": ["mel", "nv", "nv"], "ids": null, "thumbnails": ["?", "?", "?"]}'},
        {CASES: None},
    ],
)
def test_damaged_cases_are_refused(cases: Cases, change: dict[str, bytes | None]) -> None:
    files = {name: data for name, data in (cases.to_files() | change).items() if data is not None}
    with pytest.raises(BundleError, match=r"^x: cases\.npy and cases\.json"):
        Cases.from_files(files, CLASSES, source="x")
