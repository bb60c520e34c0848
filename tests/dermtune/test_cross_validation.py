from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dermtune import cross_validation
from dermtune.backbone import Tail
from dermtune.checkpoint import Resume
from dermtune.cross_validation import cross_validate, summarize_folds
from dermtune.params import Params
from dermtune.task import read_task
from dermtune.training import Examples

FOLDS = 3


def test_each_lesion_is_held_out_once_and_never_by_a_tail_that_learned_from_it(
    params: Params, larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = read_task(larger / "ingest", larger / "embed", backbone=params.backbone, seed=1)
    train_tail, predict_logits = cross_validation.train_tail, cross_validation.predict_logits
    fit_temperature = cross_validation.fit_temperature
    learned: list[np.ndarray] = []
    held_out: list[np.ndarray] = []

    def train(tail: Tail, train: Examples, val: Examples, *args, **kwargs):  # noqa: ANN002, ANN003, ANN202
        assert train.views is task.train.views
        assert val is task.val
        learned.append(train.rows.numpy())
        return train_tail(tail, train, val, *args, **kwargs)

    def predict(tail: Tail, examples: Examples, device: str) -> torch.Tensor:
        if examples is not task.val:
            assert examples.views is task.plain.views
            held_out.append(examples.rows.numpy())
        return predict_logits(tail, examples, device)

    def fit(logits: np.ndarray, labels: np.ndarray):  # noqa: ANN202
        assert np.array_equal(labels, task.val.labels.numpy())
        return fit_temperature(logits, labels)

    for name, wrapper in (("train_tail", train), ("predict_logits", predict), ("fit_temperature", fit)):
        monkeypatch.setattr(cross_validation, name, wrapper)
    config = params.finetune.model_copy(update={"folds": FOLDS, "epochs": 1})
    folds = cross_validate(task, config, seed=1, resume=Resume(tmp_path / "finetune.safetensors", "one"))

    assert len(folds) == len(learned) == len(held_out) == FOLDS
    everything = np.arange(len(task.train_table))
    assert np.array_equal(np.sort(np.concatenate(held_out)), everything)
    groups = task.train_table["group_id"].to_numpy()
    for one, other in zip(learned, held_out, strict=True):
        assert np.array_equal(np.sort(np.concatenate([one, other])), everything)
        assert not set(groups[one]) & set(groups[other])


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    """By hand for two folds: 0.8 and 0.9; t(0.975, 1) = 12.7062; variance 0.005 times (1/2 + 1)."""
    found = summarize_folds(pd.DataFrame({"auroc_macro": [0.8, 0.9]}))
    reach = 12.7062 * np.sqrt(0.005 * 1.5)
    assert reach > 0.85
    assert found["auroc_macro"] == {"mean": pytest.approx(0.85), "low": 0, "high": 1}, "an area lies within"
    found = summarize_folds(pd.DataFrame({"auroc_macro": [0.80, 0.81]}))
    reach = 12.7062 * np.sqrt(0.00005 * 1.5)
    assert found["auroc_macro"]["mean"] == pytest.approx(0.805)
    assert found["auroc_macro"]["low"] == pytest.approx(0.805 - reach, abs=1e-4)
    assert found["auroc_macro"]["high"] == pytest.approx(0.805 + reach, abs=1e-4)


def test_a_metric_that_folds_leave_undefined_has_no_interval() -> None:
    found = summarize_folds(pd.DataFrame({"a": [0.5, None], "b": [None, None], "c": [0.7, 0.7]}, dtype=float))
    assert found["a"] == {"mean": 0.5, "low": None, "high": None}
    assert found["b"] == {"mean": None, "low": None, "high": None}
    assert found["c"]["low"] == found["c"]["high"] == pytest.approx(0.7)


def test_more_folds_give_a_narrower_interval() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for folds in (3, 10):
        found = summarize_folds(pd.DataFrame({"x": rng.normal(0.9, 0.01, folds)}))["x"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0]
