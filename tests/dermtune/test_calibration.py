import numpy as np
import pytest

from dermtune.calibration import (
    decision_weights,
    fit_temperature,
    prior_shift,
    softmax,
)
from dermtune.errors import DataError


def overconfident(factor: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `factor` times too large, and labels drawn from the honest probabilities."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (4000, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(honest)])
    return (honest * factor).astype(np.float32), labels


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_the_temperature_undoes_what_made_the_logits_too_large(factor: float) -> None:
    logits, labels = overconfident(factor)

    found = fit_temperature(logits, labels)

    assert found.temperature == pytest.approx(factor, rel=0.08)
    assert found.nll_after <= found.nll_before


def test_the_likelihood_is_that_of_the_probabilities() -> None:
    logits, labels = overconfident(2.0)

    found = fit_temperature(logits, labels)

    rows = np.arange(len(labels))
    before, after = softmax(logits)[rows, labels], softmax(logits, found.temperature)[rows, labels]
    assert found.nll_before == pytest.approx(-np.log(before).mean())
    assert found.nll_after == pytest.approx(-np.log(after).mean())


def test_huge_logits_neither_overflow_nor_warn() -> None:
    probabilities = softmax(np.array([[1e4, -1e4, 0.0]], dtype=np.float32))

    assert probabilities.tolist() == [[1.0, 0.0, 0.0]]


def test_a_network_that_is_always_right_gets_the_smallest_temperature_and_no_error() -> None:
    found = fit_temperature(np.array([[5.0, 0.0], [0.0, 5.0]]), np.array([0, 1]))

    assert 0 < found.temperature < 1


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
        fit_temperature(logits, labels)


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
