import shutil
from pathlib import Path

import numpy as np
import pytest

from dermtune.errors import ConfigError, DataError
from dermtune.params import Params
from dermtune.table import read_table
from dermtune.task import read_task


def test_labels_and_activations_belong_to_the_same_images(
    params: Params, ingested: Path, embedded: Path
) -> None:
    task = read_task(ingested, embedded, backbone=params.backbone, seed=7)
    train = read_table(ingested / "images.parquet", split="train")
    assert [task.classes[label] for label in task.train.labels] == train["label"].tolist()
    assert len(task.train.views) == params.augment.views
    assert [len(view) for view in task.train.views] == [len(train)] * params.augment.views
    assert len(task.val.labels) == len(task.val_table)
    assert task.plain is None
    assert task.lineage["seed"] == 7


def test_unvaried_images_are_read_where_they_are(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    shutil.copytree(embedded, tmp_path / "embed")
    shutil.copy(embedded / "train-00.npy", tmp_path / "embed/plain.npy")
    task = read_task(ingested, tmp_path / "embed", backbone=params.backbone, seed=7)
    assert task.plain is not None
    assert np.array_equal(task.plain.labels, task.train.labels)


def test_what_is_missing_is_named(params: Params, ingested: Path, embedded: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"activations\.json: missing or damaged; re-run embed"):
        read_task(ingested, tmp_path, backbone=params.backbone, seed=7)
    with pytest.raises(DataError, match=r"images\.parquet: not a readable image table; re-run ingest"):
        read_task(tmp_path, embedded, backbone=params.backbone, seed=7)


def test_activations_that_are_not_all_there_are_refused(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    shutil.copytree(embedded, tmp_path / "embed")
    (tmp_path / "embed/train-01.npy").unlink()
    with pytest.raises(DataError, match=r"1 views where activations\.json says 2; re-run embed"):
        read_task(ingested, tmp_path / "embed", backbone=params.backbone, seed=7)


def test_training_images_are_told_apart_by_group_where_that_is_asked(
    params: Params, ingested: Path, embedded: Path
) -> None:
    task = read_task(ingested, embedded, backbone=params.backbone, seed=7, groups="sex")
    sexes = task.train_table["sex"].fillna("not given").tolist()
    names = sorted(task.lineage["groups"])
    assert task.train.groups is not None
    assert [names[group] for group in task.train.groups] == sexes
    assert task.lineage["groups"] == {name: sexes.count(name) for name in names}
    plain = read_task(ingested, embedded, backbone=params.backbone, seed=7)
    assert plain.train.groups is None
    assert "groups" not in plain.lineage


def test_an_attribute_that_is_the_same_for_all_is_refused(
    params: Params, ingested: Path, embedded: Path
) -> None:
    message = r"finetune\.groups: in source, all training images are 'synthetic': .* choose another"
    with pytest.raises(ConfigError, match=message):
        read_task(ingested, embedded, backbone=params.backbone, seed=7, groups="source")
