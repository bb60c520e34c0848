import numpy as np
import pytest

from dermtune.calibration import (
    decision_weights,
    fit_calibrator,
    fit_temperature,
    log_loss,
    prior_shift,
    softmax,
)
from dermtune.errors import DataError
from dermtune.goals import Method


def overconfident(factor: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `factor` times too large, and labels drawn from the honest probabilities."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (4000, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(honest)])
    return (honest * factor).astype(np.float32), labels


NONE = np.zeros(4)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_the_temperature_undoes_what_made_the_logits_too_large(factor: float) -> None:
    logits, labels = overconfident(factor)
    assert fit_temperature(logits, labels) == pytest.approx(factor, rel=0.08)
    found = fit_calibrator(logits, labels, method="temperature", shift=NONE)
    assert found(logits) == pytest.approx(softmax(logits, fit_temperature(logits, labels)))
    assert log_loss(found(logits), labels) <= log_loss(softmax(logits), labels)


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_each_method_makes_new_images_more_likely(method: Method) -> None:
    logits, labels = overconfident(2.5)
    new, truth = overconfident(2.5, seed=1)
    found = fit_calibrator(logits, labels, method=method, shift=NONE)
    probabilities = found(new)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert probabilities.min() > 0
    assert log_loss(probabilities, truth) < log_loss(softmax(new), truth) - 0.2


def test_vector_scaling_mends_what_one_temperature_cannot() -> None:
    logits, labels = overconfident(1.0)
    skewed = logits * [0.5, 1, 1, 2] + [1, 0, 0, -1]
    temperature, vector = (
        log_loss(fit_calibrator(skewed, labels, method=method, shift=NONE)(skewed), labels)
        for method in ("temperature", "vector")
    )
    honest = log_loss(softmax(logits), labels)
    assert temperature > honest + 0.1
    assert vector == pytest.approx(honest, abs=0.01)


def test_a_curve_rises_and_meets_the_frequencies() -> None:
    logits, labels = overconfident(2.5)
    found = fit_calibrator(logits, labels, method="isotonic", shift=NONE)
    assert (np.diff(found.given, axis=1) >= 0).all()
    assert (np.diff(found.found, axis=1) >= 0).all()
    probabilities = found(logits)
    assert probabilities.mean(axis=0) == pytest.approx(np.bincount(labels) / len(labels), abs=0.02)


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_the_shift_is_part_of_what_is_calibrated(method: Method) -> None:
    logits, labels = overconfident(2.0)
    shift = np.array([1.0, -1.0, 0.5, 0.0])
    found = fit_calibrator(logits - shift, labels, method=method, shift=shift)
    without = fit_calibrator(logits, labels, method=method, shift=NONE)
    assert found(logits - shift) == pytest.approx(without(logits), abs=1e-3)


def test_huge_logits_neither_overflow_nor_warn() -> None:
    probabilities = softmax(np.array([[1e4, -1e4, 0.0]], dtype=np.float32))

    assert probabilities.tolist() == [[1.0, 0.0, 0.0]]


def test_a_network_that_is_always_right_gets_the_smallest_temperature_and_no_error() -> None:
    assert 0 < fit_temperature(np.array([[5.0, 0.0], [0.0, 5.0]]), np.array([0, 1])) < 1


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, np.int64), "validation split is empty"),
        (np.array([[np.nan, 0.0]]), np.array([0]), "not finite"),
    ],
)
def test_logits_that_cannot_be_calibrated_are_an_error(
    logits: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_calibrator(logits, labels, method="temperature", shift=np.zeros(logits.shape[1]))


def test_weights_of_the_loss_are_undone() -> None:
    """A network that learned from weighted images says p * w; the shift gives p back."""
    frequencies = np.array([0.7, 0.2, 0.1])
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    learned = np.log(probabilities * frequencies**-0.5)
    assert softmax(learned + prior_shift(frequencies, 0.5)) == pytest.approx(probabilities)
    assert prior_shift(frequencies, 0.0).tolist() == [0, 0, 0]


def test_decision_weights_name_what_balanced_accuracy_asks_for() -> None:
    frequencies = np.array([0.8, 0.2])
    assert decision_weights(frequencies, 1.0) == pytest.approx([0.25, 1])
    assert decision_weights(frequencies, 0.0).tolist() == [1, 1]
    weighted = np.array([[0.79, 0.21], [0.81, 0.19]]) * decision_weights(frequencies, 1.0)
    assert weighted.argmax(1).tolist() == [1, 0]
