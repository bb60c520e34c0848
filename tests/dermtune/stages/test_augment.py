from pathlib import Path

import numpy as np
import pytest

from dermtune.errors import DataError
from dermtune.params import Params
from dermtune.shards import PackedImages, open_array, places
from dermtune.stages.augment import augment
from dermtune.table import read_table
from dermtune_bundle.decode import resize


def test_each_view_has_every_training_image_in_the_tables_order(augmented: Path, ingested: Path) -> None:
    train = read_table(ingested / "images.parquet", split="train")
    views = [open_array(augmented / f"train-{view:02d}.npy", rows=len(train)) for view in range(2)]
    assert {(view.shape[1:], view.dtype) for view in views} == {((64, 64, 3), np.dtype("uint8"))}
    assert not np.array_equal(*views)
    packed = PackedImages(ingested)
    # a view keeps its image's colours about: each row is nearer to its own image than to most others
    means = np.array([packed.decode(place).mean((0, 1)) for place in places(train)])
    distance = np.linalg.norm(views[0].mean((1, 2))[:, None] - means[None], axis=2)
    assert np.median((distance < np.diag(distance)[:, None]).sum(axis=1)) < len(train) / 10


def test_validation_images_are_only_resized(augmented: Path, ingested: Path) -> None:
    val = read_table(ingested / "images.parquet", split="val")
    packed = PackedImages(ingested)
    plain = open_array(augmented / "val.npy", rows=len(val))
    for row, place in enumerate(places(val)):
        assert np.array_equal(plain[row], resize(packed.decode(place), 64))


def test_no_test_image_is_read(augmented: Path) -> None:
    assert sorted(path.name for path in augmented.iterdir()) == [
        "contact_sheet.png",
        "train-00.npy",
        "train-01.npy",
        "val.npy",
        "views.json",
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    params: Params, augmented: Path, ingested: Path, tmp_path: Path
) -> None:
    for seed, same in ((params.seed, True), (params.seed + 1, False)):
        out = tmp_path / str(seed)
        augment(params.augment, input_size=64, seed=seed, images=ingested, out=out)
        for name in ("train-00.npy", "train-01.npy"):
            assert ((out / name).read_bytes() == (augmented / name).read_bytes()) is same
        assert (out / "val.npy").read_bytes() == (augmented / "val.npy").read_bytes()


def test_views_of_an_earlier_run_do_not_stay(params: Params, ingested: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "train-02.npy", np.zeros(1))
    augment(params.augment, input_size=64, seed=1, images=ingested, out=tmp_path)
    assert len(list(tmp_path.glob("train-*.npy"))) == params.augment.views


def test_missing_images_are_named(params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images\.parquet: not a readable image table; re-run ingest"):
        augment(params.augment, input_size=64, seed=1, images=tmp_path, out=tmp_path / "out")
