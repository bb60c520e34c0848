from pathlib import Path

import numpy as np

from dermtune.studies.images import balanced_rows, read_images
from dermtune.table import read_table


def test_classes_are_as_equally_often_there_as_they_can_be() -> None:
    labels = np.repeat([0, 1, 2], [100, 30, 4])
    rows = balanced_rows(labels, 34, seed=1)
    assert np.bincount(labels[rows]).tolist() == [15, 15, 4]
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, balanced_rows(labels, 34, seed=1))
    assert set(rows) != set(balanced_rows(labels, 34, seed=2))
    assert len(balanced_rows(labels, 1_000, seed=1)) == 134


def test_images_of_a_split_come_with_their_rows(ingested: Path) -> None:
    table = read_table(ingested / "images.parquet")
    images = read_images(ingested, "val", 32)
    assert images.pixels.shape == ((table["split"] == "val").sum(), 32, 32, 3)
    assert [images.classes[label] for label in images.labels] == images.table["label"].tolist()
    few = read_images(ingested, "val", 32, most=5)
    assert set(few.table["image_id"]) < set(images.table["image_id"])
    at = images.table["image_id"].tolist().index(few.table["image_id"][0])
    np.testing.assert_array_equal(few.pixels[0], images.pixels[at])


def test_some_images_are_the_same_ones_in_the_order_asked_for(ingested: Path) -> None:
    images = read_images(ingested, "val", 32)
    some = images.only(np.array([4, 1]))
    assert some.table["image_id"].tolist() == images.table["image_id"].iloc[[4, 1]].tolist()
    np.testing.assert_array_equal(some.pixels, images.pixels[[4, 1]])
    np.testing.assert_array_equal(some.labels, images.labels[[4, 1]])
    assert some.lesions.tolist() == images.lesions[[4, 1]].tolist()


def test_as_they_come_a_frequent_class_stays_frequent(ingested: Path) -> None:
    images = read_images(ingested, "train", 32)
    most = len(images.labels) // 2
    drawn = read_images(ingested, "train", 32, most=most, balanced=False, seed=1)
    even = read_images(ingested, "train", 32, most=most, seed=1)
    common = np.bincount(images.labels).argmax()
    share = (images.labels == common).mean()
    assert abs((drawn.labels == common).mean() - share) < 0.15
    assert (even.labels == common).mean() < (drawn.labels == common).mean()
