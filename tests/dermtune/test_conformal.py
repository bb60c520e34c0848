import numpy as np
import pytest
from crepes import ConformalClassifier

from dermtune.conformal import measure_sets, set_thresholds
from dermtune.metrics import Predictions

SHARES = [0.7, 0.2, 0.1]


def ids(count: int, images: int = 1) -> np.ndarray:
    return np.array([f"L{number // images}" for number in range(count)], dtype=object)


def make(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, size=count, p=SHARES)
    logits = rng.normal(0, 1, (count, 3)) + 1.5 * np.eye(3)[labels] + np.log(SHARES)
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_of_each_class_the_stated_share_is_covered() -> None:
    thresholds = set_thresholds(*make(3000, 1), ids(3000), coverage=0.9)
    probabilities, labels = make(30_000, 2)
    for column in range(3):
        inside = probabilities[labels == column, column] >= thresholds[column]
        assert inside.mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("coverage", [0.83, 0.9, 0.95])  # none at which theirs and ours break ties unlike
def test_sets_are_those_of_crepes(coverage: float) -> None:
    probabilities, labels = make(400, 3)
    thresholds = set_thresholds(probabilities, labels, ids(400), coverage)
    new, _ = make(500, 4)
    theirs = ConformalClassifier().fit(1 - probabilities[np.arange(400), labels], labels)
    for column in range(3):
        of_class = {"bins": np.full(500, column), "confidence": coverage, "smoothing": False}
        sets = theirs.predict_set(1 - new[:, [column]], **of_class)
        ours, crepes = new[:, column] >= thresholds[column], sets[:, 0].astype(bool)
        # theirs end at a calibration image's score, ours halfway to the next lower one
        between = probabilities[(probabilities[:, column] >= thresholds[column]), column].min()
        assert np.array_equal(
            ours, crepes | ((new[:, column] >= thresholds[column]) & (new[:, column] < between))
        )


def test_a_class_with_too_few_images_is_in_every_set() -> None:
    probabilities = np.array([[0.99, 0.01]] * 8 + [[0.2, 0.8]] * 30)
    labels = np.array([0] * 8 + [1] * 30)
    # halfway to 0.01, the next lower probability of the class
    assert set_thresholds(probabilities, labels, ids(38), coverage=0.9).tolist() == [0, 0.405]


def test_images_of_one_lesion_count_once() -> None:
    probabilities = np.array([[0.2, 0.8]] * 30)
    labels = np.ones(30, np.int64)
    assert set_thresholds(probabilities, labels, ids(30), coverage=0.9)[1] > 0
    assert set_thresholds(probabilities, labels, ids(30, images=5), coverage=0.9)[1] == 0, "six lesions"


def test_a_lesion_counts_by_its_hardest_image() -> None:
    probabilities, labels = make(2000, 8)
    alone = set_thresholds(probabilities, labels, ids(2000), coverage=0.9)
    order = np.argsort(labels, kind="stable")  # so that neighbours are of one class
    joined = set_thresholds(probabilities[order], labels[order], ids(2000, images=2), coverage=0.9)
    assert (joined < alone).all()


def test_scores_that_tie_stay_in_whatever_rounding_does() -> None:
    """As isotonic calibration gives them, and as a graph answers: in float32."""
    probabilities, labels = make(500, 9)
    steps = np.round(probabilities, 1) / 3
    thresholds = set_thresholds(steps, labels, ids(500), coverage=0.9)
    answered = steps.astype(np.float32).astype(np.float64)
    for column in range(3):
        own = labels == column
        assert (answered[own, column] >= thresholds[column]).mean() >= 0.9


def test_coverage_and_size_are_measured_by_class_and_overall() -> None:
    probabilities, labels = make(300, 5)
    named = probabilities.argmax(1)
    predictions = Predictions(("nv", "mel", "df"), probabilities, labels, named, ids(300))
    thresholds = set_thresholds(*make(1000, 6), ids(1000), coverage=0.9)
    members = probabilities >= thresholds
    table = measure_sets(predictions, members, draws=100, rng=np.random.default_rng(0)).set_index("class")
    assert list(table.index) == ["nv", "mel", "df", "all"]
    assert table.loc["all", "mean_size"] == pytest.approx(members.sum(1).mean())
    assert table.loc["mel", "coverage"] == pytest.approx(members[labels == 1, 1].mean())
    assert table.loc["mel", "images"] == (labels == 1).sum()
    assert (table["coverage_low"] <= table["coverage_high"]).all()
