"""Frozen layers are computed once, and that changes nothing: against computing them anew at every step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from dermtune.metrics import auroc
from dermtune.params import Params
from dermtune.shards import open_array, read_batches, view_paths
from dermtune.stages.augment import augment
from dermtune.stages.embed import embed
from dermtune.stages.ingest import ingest
from dermtune.task import Task, read_task
from dermtune.training import Examples, predict_logits, train_tail
from dermtune.trunk import Runner, make_runner

GENTLE = {"epochs": 2, "lr": 3e-4, "dropout": 0.0}
"""A training so short and slow that the last bits do not grow into another model."""
REAL = Path(__file__).parents[3].parent / "shared/data/ham10000"


class Recomputed:
    """Views that go through the trunk each time that they are read."""

    def __init__(self, run: Runner, views: NDArray[np.uint8]) -> None:
        self.run, self.views = run, views

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        return next(self.run([self.views[rows]]))


@pytest.fixture(scope="module")
def make_task(params: Params, ingested: Path, augmented: Path, work: Path) -> Callable[[str], Task]:
    def make(dtype: str) -> Task:
        out = work / f"embed-{dtype}"
        config = params.embed.model_copy(update={"dtype": dtype})
        if not out.exists():
            embed(config, backbone=params.backbone, views=augmented, out=out)
        return read_task(ingested, out, backbone=params.backbone, seed=1)

    return make


def trained(task: Task, params: Params, **changes: object) -> torch.nn.Module:
    config = params.finetune.model_copy(update={"head_epochs": 0, "epochs": 1, **changes})
    tail = task.network.tail(len(task.classes), dropout=config.dropout, seed=1)
    return train_tail(tail, task.train, task.val, config, seed=1, device="cpu")[0]


@pytest.mark.parametrize("device", ["cpu", "cpu:0"], ids=["ONNX Runtime", "torch"])
def test_an_epoch_on_stored_activations_gives_the_weights_of_one_that_recomputes_them(
    params: Params, augmented: Path, make_task: Callable[[str], Task], device: str
) -> None:
    """Each way of running the trunk against itself: Adam makes much of the last bits in which they differ."""
    task = make_task("float32")
    size = params.backbone.input_size
    run = make_runner(task.network.trunk, input_size=size, dtype="float32", device=device)

    def computed_once(examples: Examples, *paths: Path) -> Examples:
        batches = ([*run(read_batches(open_array(path), 32))] for path in paths)
        return replace(examples, views=[np.concatenate(batch) for batch in batches])

    def recomputed(examples: Examples, *paths: Path) -> Examples:
        return replace(examples, views=[Recomputed(run, open_array(path)) for path in paths])

    val = (task.val, augmented / "val.npy")
    train = (task.train, *view_paths(augmented))
    once = replace(task, train=computed_once(*train), val=computed_once(*val))
    anew = replace(task, train=recomputed(*train), val=recomputed(*val))
    before = task.network.tail(len(task.classes), dropout=0.0, seed=1).state_dict()
    one, other = trained(once, params).state_dict(), trained(anew, params).state_dict()
    if device == "cpu":
        stored = trained(task, params).state_dict()
        assert all(torch.equal(value, stored[name]) for name, value in one.items()), "files change nothing"
    assert any(float((value - before[name]).abs().max()) > 1e-3 for name, value in one.items())
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-4, atol=1e-5), name


def heldout_auroc(tail: torch.nn.Module, examples: Examples, at_least: int = 1) -> float:
    """Macro AUROC over the classes that have so many held-out images."""
    probabilities = predict_logits(tail, examples, "cpu").double().softmax(1).numpy()
    labels = examples.labels.numpy()
    common = [index for index, count in enumerate(np.bincount(labels)) if count >= at_least]
    areas = [auroc(probabilities[:, index], labels == index).value for index in common]
    return float(np.mean(areas))


def test_half_precision_storage_leaves_the_auroc_as_it_is(
    params: Params, make_task: Callable[[str], Task]
) -> None:
    half, full = make_task("float16"), make_task("float32")
    areas = [heldout_auroc(trained(task, params, **GENTLE), task.val) for task in (half, full)]
    assert areas[1] > 0.6, "it learned something"
    assert abs(areas[0] - areas[1]) < 0.002


def some_of_ham10000(folder: Path, lesions: int) -> None:
    """A source of some of its lesions: the table's rows, and a link to its images."""
    table = pd.read_csv(REAL / "HAM10000_metadata.csv")
    chosen = table["lesion_id"].drop_duplicates().sample(lesions, random_state=1)
    folder.mkdir()
    (folder / "images").mkdir()
    rows = table[table["lesion_id"].isin(chosen)]
    rows.to_csv(folder / "HAM10000_metadata.csv", index=False)
    for name in rows["image_id"]:
        if (image := REAL / "images" / f"{name}.jpg").exists():
            copyfile(image, folder / "images" / image.name)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data")
def test_half_precision_storage_leaves_the_auroc_on_real_lesions_as_it_is(
    params: Params, tmp_path: Path
) -> None:
    source = tmp_path / "ham10000"
    some_of_ham10000(source, 1000)
    config = params.ingest.model_copy(
        update={"source": "ham10000", "path": str(source), "max_quarantine": 1.0}
    )
    ingest(config, seed=1, out=tmp_path / "ingest")
    size = params.backbone.input_size
    views = params.augment.model_copy(update={"views": 2})
    augment(views, input_size=size, seed=1, images=tmp_path / "ingest", out=tmp_path / "augment")
    areas = []
    for dtype in ("float16", "float32"):
        stored = params.embed.model_copy(update={"dtype": dtype})
        embed(stored, backbone=params.backbone, views=tmp_path / "augment", out=tmp_path / dtype)
        task = read_task(tmp_path / "ingest", tmp_path / dtype, backbone=params.backbone, seed=1)
        areas.append(heldout_auroc(trained(task, params, **GENTLE), task.val, at_least=10))
    assert areas[1] > 0.7, "it learned something"
    assert abs(areas[0] - areas[1]) < 0.002
