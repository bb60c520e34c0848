import numpy as np
import pandas as pd
import pytest

from dermtune.metrics import Predictions, Sampled
from dermtune.studies.robustness_measures import AS_IT_IS, combine, corruption_error, measure_robustness

CLASSES = ("bcc", "mel", "nv")
LABELS = np.repeat([0, 1, 2], 10)


def said(*wrong: int) -> Predictions:
    """The first so many images of each class are taken for the next class."""
    named = LABELS.copy()
    for column, count in enumerate(wrong):
        named[np.flatnonzero(column == LABELS)[:count]] = (column + 1) % 3
    probabilities = np.full((30, 3), 0.1)
    probabilities[np.arange(30), named] = 0.8
    lesions = np.array([f"L{row}" for row in range(30)], object)
    return Predictions(CLASSES, probabilities, LABELS, named, lesions, (True, True, False))


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    moves = {("shift", 0.0): said(0, 0, 0), ("shift", 1.0): said(3, 0, 0), ("shift", 2.0): said(0, 0, 0)}
    shipped = {AS_IT_IS: said(0, 1, 0), ("hair", 1.0): said(0, 1, 0), ("hair", 2.0): said(0, 5, 1)} | moves
    plain = {AS_IT_IS: said(0, 1, 0), ("hair", 1.0): said(0, 4, 0), ("hair", 2.0): said(3, 5, 1)}
    plain |= {("shift", 0.0): said(0, 0, 0), ("shift", 1.0): said(6, 0, 0), ("shift", 2.0): said(3, 3, 0)}
    probe = {AS_IT_IS: said(1, 2, 0), ("hair", 1.0): said(2, 4, 0), ("hair", 2.0): said(4, 6, 2)} | moves
    by_model = {"shipped": shipped, "plain": plain, "probe": probe}
    return measure_robustness(by_model, ("shift",), draws=200, seed=1)


def test_corruption_error_is_as_by_hand(tables: dict[str, pd.DataFrame]) -> None:
    errors = tables["errors"].set_index("artefact")["value"]
    assert errors["hair"] == pytest.approx((1 + 6) / (6 + 12))
    assert errors["mean"] == errors["hair"]
    assert errors["relative mean"] == pytest.approx((7 - 2 * 1) / (18 - 2 * 3))
    assert (tables["errors"]["low"] < tables["errors"]["value"]).all()
    assert (tables["errors"]["high"] > tables["errors"]["value"]).all()


def test_damage_is_by_class_melanoma_first(tables: dict[str, pd.DataFrame]) -> None:
    damage = tables["damage"].query("classifier == 'shipped'")
    of_class = damage[damage["metric"] == "sensitivity"]
    assert of_class["class"].tolist() == ["mel", "bcc", "nv"]
    assert of_class["before"].tolist() == pytest.approx([0.9, 1, 1])
    assert of_class["value"].tolist() == pytest.approx([-0.2, 0, -0.05])
    assert of_class["after"].tolist() == pytest.approx([0.7, 1, 0.95])
    whole = damage[damage["metric"] == "balanced accuracy"].iloc[0]
    assert whole["value"] == pytest.approx((-0.2 - 0.05) / 3)
    assert whole["low"] < whole["value"] < whole["high"] <= 0


def test_severities_hold_all_that_is_measured(tables: dict[str, pd.DataFrame]) -> None:
    found = tables["severities"].set_index(["classifier", "artefact", "severity", "metric", "class"])["value"]
    assert found["shipped", "as it is", 0, "balanced accuracy", "all"] == pytest.approx(2.9 / 3)
    assert found["plain", "hair", 2, "sensitivity", "mel"] == pytest.approx(0.5)
    assert found["probe", "hair", 1, "AUROC", "nv"] == pytest.approx(1 - 4 / 20 / 2), "four tie"
    assert len(found) == 3 * 3 * (2 * 3 + 2)


def test_consistency_counts_who_keeps_the_class(tables: dict[str, pd.DataFrame]) -> None:
    found = tables["consistency"].set_index(["classifier", "level", "measure"])
    assert found["value"]["shipped", 1, "same class"] == pytest.approx(0.9)
    assert found["value"]["shipped", 1, "change"] == pytest.approx(0.07)
    assert found["value"]["shipped", 2, "same class"] == 1
    low, high = found.loc[("shipped", 2, "same class"), ["low", "high"]]
    assert (low, high) == pytest.approx((0.025 ** (1 / 30), 1)), (
        "that none changed does not mean that none ever will"
    )


def test_augmentation_buys_the_difference(tables: dict[str, pd.DataFrame]) -> None:
    found = tables["augmentation"].set_index(["metric", "condition"])
    hair = found.loc[("balanced accuracy", "hair")]
    assert (hair["with"], hair["without"]) == pytest.approx((1 - 3.5 / 30, 1 - 6.5 / 30))
    assert hair["value"] == pytest.approx(0.1)
    assert 0 <= hair["low"] < 0.1 < hair["high"]
    assert found["value"]["balanced accuracy", "as it is"] == 0
    assert found["value"]["balanced accuracy", "all artefacts"] == pytest.approx(0.1)
    assert found["value"]["same class", "shift"] == pytest.approx(0.95 - 0.8)


def test_of_an_ensemble_one_tail_is_compared_with_one() -> None:
    good, bad = ({AS_IT_IS: said(), ("hair", 1.0): said(*wrong)} for wrong in ((), (4, 4, 4)))
    tables = measure_robustness(
        {"shipped": good, "plain": bad, "probe": bad, "first": bad}, (), draws=50, seed=1
    )
    found = tables["augmentation"].set_index(["metric", "condition"])
    assert found["value"]["balanced accuracy", "hair"] == 0
    assert set(tables["damage"]["classifier"]) == {"shipped", "plain", "probe"}


def test_what_is_made_of_the_undefined_is_undefined() -> None:
    one, none = Sampled(0.5, np.array([0.4, 0.6])), Sampled(None, np.array([np.nan, np.nan]))
    assert combine(lambda x: x.mean(0), [one, none]).value is None
    perfect = Sampled(1.0, np.array([1.0, 0.5]), lesions=4)
    error = corruption_error([one], [perfect])
    assert error.value is None, "the baseline never errs"
    np.testing.assert_allclose(error.draws, [np.nan, 0.8])
    assert error.lesions == 4
