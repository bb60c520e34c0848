from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dermtune.params import Params
from dermtune.studies.leakage import _Stacked, _to_leave, run_leakage_study
from dermtune.task import read_task


def test_stacked_arrays_are_read_as_one() -> None:
    upper, lower = np.arange(12).reshape(4, 3), 100 + np.arange(6).reshape(2, 3)
    rows = np.array([5, 0, 4, 3, 0])
    assert np.array_equal(_Stacked(upper, lower)[rows], np.concatenate([upper, lower])[rows])


@pytest.mark.slow
def test_what_leaks_is_learned_by_heart(params: Params, larger: Path, tmp_path: Path) -> None:
    recipe = {"epochs": 12, "patience": 12, "lr": 0.01, "dropout": 0.0, "label_smoothing": 0.0}
    eager = params.model_copy(update={"finetune": params.finetune.model_copy(update=recipe)})
    found = run_leakage_study(
        eager, images=larger / "ingest", activations=larger / "embed", shares=(0.0, 1.0), out=tmp_path
    )
    none, whole = ({one.metric: one for one in differences} for differences in found.values())
    assert all(one.value == 0 for one in none.values()), "the clean training, once more"
    area = whole["AUROC, malignant"]
    assert area.first == none["AUROC, malignant"].first
    assert area.low > 0, "a leak makes the same model look better"
    assert whole["AUROC, macro"].value > 0
    table = pd.read_csv(tmp_path / "leakage.csv")
    assert set(table["share"]) == {0.0, 1.0}


def test_as_many_training_images_of_each_class_leave_as_leak_in(
    params: Params, ingested: Path, embedded: Path
) -> None:
    task = read_task(ingested, embedded, backbone=params.backbone, seed=params.seed)
    labels = task.train.labels.numpy()
    second, first = np.bincount(labels).argsort()[-2:].tolist()
    leave = _to_leave(task, torch.tensor([first, first, first, second]), seed=1)
    assert sorted(labels[leave].tolist()) == sorted([first, first, first, second])
    assert len(set(leave.tolist())) == 4
