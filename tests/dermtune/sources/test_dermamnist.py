import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dermtune.errors import SourceError
from dermtune.places import Place
from dermtune.sources.dermamnist import dermamnist
from dermtune_bundle.decode import decode

COUNTS = {"train": 7, "val": 2, "test": 1}


def arrays(side: int) -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    found = {}
    for split, count in COUNTS.items():
        found[f"{split}_images"] = rng.integers(0, 256, (count, side, side, 3), np.uint8)
        found[f"{split}_labels"] = np.arange(count, dtype=np.uint8).reshape(-1, 1)
    return found


@pytest.mark.parametrize(("side", "factor"), [(28, 2), (32, 1), (64, 1), (9, 4)])
def test_the_official_arrays_are_read(tmp_path: Path, side: int, factor: int) -> None:
    made = arrays(side)
    np.savez_compressed(tmp_path / "dermamnist.npz", **made)
    images = dermamnist(tmp_path)
    assert [image.label for image in images[:7]] == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert [image.split for image in images] == ["train"] * 7 + ["val"] * 2 + ["test"]
    assert images[8].image_id == images[8].lesion_id == "dermamnist-val-00001"
    assert images[8].path == "dermamnist.npz/val/00001.png"
    assert images[8].license == "CC-BY-NC-4.0"
    data = pickle.loads(pickle.dumps(images[8].content))()  # noqa: S301
    expected = made["val_images"][1].repeat(factor, axis=0).repeat(factor, axis=1)
    np.testing.assert_array_equal(decode(data, name="x"), expected)


def test_a_worker_is_sent_the_pixels_of_one_image_alone(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "dermamnist_64.npz", **arrays(64))
    assert len(pickle.dumps(dermamnist(tmp_path)[0])) < 2 * 64 * 64 * 3


def test_an_unknown_number_stays_the_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "dermamnist.npz", **arrays(28) | {"test_labels": np.array([[7]])})
    assert dermamnist(tmp_path)[-1].label == "7"


def test_exactly_one_file_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"0 files dermamnist\*\.npz"):
        dermamnist(tmp_path)
    for name in ("dermamnist.npz", "dermamnist_64.npz"):
        np.savez(tmp_path / name, **arrays(28))
    with pytest.raises(SourceError, match=r"2 files dermamnist\*\.npz"):
        dermamnist(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_images": np.zeros((7, 28, 28), np.uint8)},
        {"train_images": np.zeros((7, 28, 28, 3), np.float32)},
        {"train_images": np.zeros((7, 0, 28, 3), np.uint8)},
        {"train_labels": np.zeros((6, 1), np.uint8)},
        {"train_labels": np.zeros((7, 1), np.float64)},
        {"train_labels": np.array([None] * 7)},
    ],
)
def test_another_layout_is_refused(tmp_path: Path, wrong: dict[str, NDArray[np.generic]]) -> None:
    np.savez(tmp_path / "dermamnist.npz", **arrays(28) | wrong)
    with pytest.raises(SourceError, match=r"dermamnist\.npz: not a readable DermaMNIST"):
        dermamnist(tmp_path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dermamnist.npz"
    np.savez_compressed(path, **arrays(28))
    whole = path.read_bytes()
    np.savez(path, train_images=arrays(28)["train_images"])
    lacking = path.read_bytes()
    np.save(tmp_path / "array.npy", np.zeros(3))
    middle = len(whole) // 3
    flipped = whole[:middle] + bytes(20) + whole[middle + 20 :]
    for data in (
        b"",
        b"junk",
        whole[: len(whole) // 2],
        lacking,
        flipped,
        (tmp_path / "array.npy").read_bytes(),
    ):
        path.write_bytes(data)
        with pytest.raises(SourceError, match="download it again"):
            dermamnist(tmp_path)


def test_it_is_read_in_a_bucket(tmp_path: Path, s3: str) -> None:
    np.savez(tmp_path / "dermamnist.npz", **arrays(32))
    fsspec.filesystem("s3", skip_instance_cache=True).put(
        f"{tmp_path}/dermamnist.npz", f"{s3}/dermamnist.npz"
    )
    there, here = dermamnist(Place(s3)), dermamnist(tmp_path)
    assert [(image.path, image.content()) for image in there] == [
        (image.path, image.content()) for image in here
    ]
