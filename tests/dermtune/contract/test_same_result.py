"""Frozen layers are computed once, and that changes nothing: against computing them anew at every step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from dermtune.backbone import Trunk, load_backbone
from dermtune.metrics import auroc
from dermtune.params import Params
from dermtune.shards import open_array, view_paths
from dermtune.stages.augment import augment
from dermtune.stages.embed import embed
from dermtune.stages.ingest import ingest
from dermtune.task import Task, read_task
from dermtune.training import Examples, predict_logits, train_tail

SIZE = 64
REAL = Path(__file__).parents[3].parent / "shared/data/ham10000"


class Recomputed:
    """Views that go through torch's own trunk each time that they are read."""

    def __init__(self, trunk: Trunk, views: NDArray[np.uint8]) -> None:
        self.trunk, self.views = trunk, views

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(self.views[rows]).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            activations: NDArray[np.float32] = self.trunk(pixels).numpy()
        return activations


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


def test_an_epoch_on_stored_activations_gives_the_weights_of_one_that_recomputes_them(
    params: Params, augmented: Path, make_task: Callable[[str], Task]
) -> None:
    stored = make_task("float32")
    trunk = load_backbone(params.backbone).trunk

    def recomputed(examples: Examples, *paths: Path) -> Examples:
        return Examples([Recomputed(trunk, open_array(path)) for path in paths], examples.labels)

    anew = replace(
        stored,
        train=recomputed(stored.train, *view_paths(augmented)),
        val=recomputed(stored.val, augmented / "val.npy"),
    )
    before = stored.network.tail(len(stored.classes), dropout=0.0, seed=1).state_dict()
    one, other = trained(stored, params).state_dict(), trained(anew, params).state_dict()
    furthest, moved = 0.0, 0.0
    for name, value in one.items():
        scale = float(value.abs().max()) or 1.0
        furthest = max(furthest, float((value - other[name]).abs().max()) / scale)
        moved = max(moved, float((value - before[name]).abs().max()) / scale)
    assert moved > 0.1, "an epoch changes weights"
    assert furthest < 2e-3


def heldout_auroc(tail: torch.nn.Module, examples: Examples) -> float:
    probabilities = predict_logits(tail, examples, "cpu").double().softmax(1).numpy()
    labels = examples.labels.numpy()
    areas = [auroc(probabilities[:, index], labels == index).value for index in np.unique(labels)]
    return float(np.mean(areas))


def test_half_precision_storage_leaves_the_auroc_as_it_is(
    params: Params, make_task: Callable[[str], Task]
) -> None:
    half, full = make_task("float16"), make_task("float32")
    areas = [heldout_auroc(trained(task, params, epochs=3), full.val) for task in (half, full)]
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
            (folder / "images" / image.name).symlink_to(image)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data")
def test_half_precision_storage_leaves_the_auroc_on_real_lesions_as_it_is(
    params: Params, tmp_path: Path
) -> None:
    source = tmp_path / "ham10000"
    some_of_ham10000(source, 1500)
    config = params.ingest.model_copy(
        update={"source": "ham10000", "path": str(source), "max_quarantine": 1.0}
    )
    ingest(config, seed=1, out=tmp_path / "ingest")
    size = params.backbone.input_size
    augment(params.augment, input_size=size, seed=1, images=tmp_path / "ingest", out=tmp_path / "augment")
    areas = []
    for dtype in ("float16", "float32"):
        stored = params.embed.model_copy(update={"dtype": dtype})
        embed(stored, backbone=params.backbone, views=tmp_path / "augment", out=tmp_path / dtype)
        task = read_task(tmp_path / "ingest", tmp_path / dtype, backbone=params.backbone, seed=1)
        areas.append(heldout_auroc(trained(task, params, epochs=3), task.val))
    assert areas[1] > 0.7, "it learned something"
    assert abs(areas[0] - areas[1]) < 0.002
