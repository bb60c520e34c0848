import numpy as np
import pytest
from crepes import ConformalClassifier

from dermtune.conformal import measure_sets, set_thresholds
from dermtune.metrics import Predictions

SHARES = [0.7, 0.2, 0.1]


def make(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=count, p=SHARES)
    logits = rng.normal(0, 1, (count, 3)) + 1.5 * np.eye(3)[labels] + np.log(SHARES)
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_of_each_class_the_stated_share_is_covered() -> None:
    thresholds = set_thresholds(*make(3000, 1), coverage=0.9)
    probabilities, labels = make(30_000, 2)
    for column in range(3):
        inside = probabilities[labels == column, column] >= thresholds[column]
        assert inside.mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("coverage", [0.83, 0.9, 0.95])  # none at which theirs and ours break ties unlike
def test_sets_are_those_of_crepes(coverage: float) -> None:
    probabilities, labels = make(400, 3)
    thresholds = set_thresholds(probabilities, labels, coverage)
    new, _ = make(500, 4)
    theirs = ConformalClassifier().fit(1 - probabilities[np.arange(400), labels], labels)
    for column in range(3):
        of_class = {"bins": np.full(500, column), "confidence": coverage, "smoothing": False}
        sets = theirs.predict_set(1 - new[:, [column]], **of_class)
        assert np.array_equal(new[:, column] >= thresholds[column], sets[:, 0].astype(bool))


def test_a_class_with_too_few_images_is_in_every_set() -> None:
    probabilities = np.array([[0.99, 0.01]] * 8 + [[0.2, 0.8]] * 30)
    thresholds = set_thresholds(probabilities, np.array([0] * 8 + [1] * 30), coverage=0.9)
    assert thresholds.tolist() == [0, 0.8]


def test_coverage_and_size_are_measured_by_class_and_overall() -> None:
    probabilities, labels = make(300, 5)
    ids = np.array([f"L{number}" for number in range(300)], dtype=object)
    predictions = Predictions(("nv", "mel", "df"), probabilities, labels, probabilities.argmax(1), ids)
    thresholds = set_thresholds(*make(1000, 6), coverage=0.9)
    members = probabilities >= thresholds
    table = measure_sets(predictions, members, draws=100, rng=np.random.default_rng(0)).set_index("class")
    assert list(table.index) == ["nv", "mel", "df", "all"]
    assert table.loc["all", "mean_size"] == pytest.approx(members.sum(1).mean())
    assert table.loc["mel", "coverage"] == pytest.approx(members[labels == 1, 1].mean())
    assert table.loc["mel", "images"] == (labels == 1).sum()
    assert (table["coverage_low"] <= table["coverage_high"]).all()
