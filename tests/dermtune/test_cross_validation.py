import numpy as np
import pandas as pd
import pytest

from dermtune.cross_validation import summarize_folds


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
