import numpy as np
import pandas as pd
import pytest

from dermtune.cross_validation import assign_folds, summarize_folds


def test_folds_keep_groups_together_and_classes_even() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(120, size=400)
    labels = np.where(groups % 4 == 0, "mel", "nv")
    fold = assign_folds(list(labels), [f"G{group}" for group in groups], folds=4, seed=1)
    assert set(fold) == {0, 1, 2, 3}
    assert pd.Series(fold).groupby(groups).nunique().max() == 1
    shares = [(labels[fold == number] == "mel").mean() for number in range(4)]
    assert max(shares) - min(shares) < 0.1
    assert np.array_equal(fold, assign_folds(list(labels), [f"G{g}" for g in groups], folds=4, seed=1))
    assert not np.array_equal(fold, assign_folds(list(labels), [f"G{g}" for g in groups], folds=4, seed=2))


def test_the_interval_is_that_of_nadeau_and_bengio() -> None:
    """By hand for two folds: 0.8 and 0.9; t(0.975, 1) = 12.7062; variance 0.005 times (1/2 + 1)."""
    found = summarize_folds(pd.DataFrame({"auroc_macro": [0.8, 0.9]}))
    reach = 12.7062 * np.sqrt(0.005 * 1.5)
    assert found["auroc_macro"]["mean"] == pytest.approx(0.85)
    assert found["auroc_macro"]["low"] == pytest.approx(0.85 - reach, abs=1e-4)
    assert found["auroc_macro"]["high"] == pytest.approx(0.85 + reach, abs=1e-4)


def test_more_folds_give_a_narrower_interval() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for folds in (3, 10):
        found = summarize_folds(pd.DataFrame({"x": rng.normal(0.9, 0.01, folds)}))["x"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < widths[0]
