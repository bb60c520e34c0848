import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dermtune.calibration import (
    choose_operating_point,
    decision_weights,
    fit_temperature,
    prior_shift,
    softmax,
    threshold_for_sensitivity,
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


@pytest.mark.parametrize(
    ("goal", "threshold", "sensitivity", "specificity"),
    [
        (1.0, 0.15, 1.0, 1 / 3),
        (0.9, 0.15, 1.0, 1 / 3),
        (0.75, 0.4, 1.0, 2 / 3),  # two positives tie at 0.5: taking one takes both
        (0.5, 0.7, 0.5, 1.0),
        (0.01, 0.85, 0.25, 1.0),
    ],
)
def test_the_threshold_lies_just_below_the_last_positive_to_be_found(
    goal: float, threshold: float, sensitivity: float, specificity: float
) -> None:
    ties = goal == 0.75
    scores = np.array([0.9, 0.8, 0.5, 0.5 if ties else 0.2, 0.6, 0.3, 0.1])
    positive = np.array([1, 1, 1, 1, 0, 0, 0], dtype=bool)

    found = threshold_for_sensitivity(scores, positive, goal)

    assert found.threshold == pytest.approx(threshold)
    assert found.sensitivity == sensitivity
    assert found.specificity == pytest.approx(specificity)


def test_a_goal_is_met_exactly_where_rounding_would_ask_for_one_more() -> None:
    scores, positive = np.linspace(1, 0.01, 100), np.ones(100, dtype=bool)

    found = threshold_for_sensitivity(scores, positive, 0.55)  # 0.55 * 100 is 55.00000000000001

    assert found.sensitivity == 0.55
    assert found.specificity is None


def test_no_positive_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match="finetune"):
        threshold_for_sensitivity(np.array([0.1]), np.array([False]), 0.9)


@pytest.mark.parametrize("goal", [0.0, -1.0, 1.1])
def test_an_impossible_goal_is_refused(goal: float) -> None:
    with pytest.raises(ValueError, match="not above 0 and at most 1"):
        threshold_for_sensitivity(np.array([0.1]), np.array([True]), goal)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 40).flatmap(
        lambda n: st.tuples(
            arrays(np.float64, n, elements=st.integers(0, 8).map(lambda x: x / 8)),
            arrays(np.bool_, n).filter(np.any),
        )
    ),
    st.floats(0.01, 1),
)
def test_the_goal_is_reached_and_by_no_higher_score(case: tuple[np.ndarray, np.ndarray], goal: float) -> None:
    scores, positive = case

    found = threshold_for_sensitivity(scores, positive, goal)

    assert found.sensitivity >= goal
    last = scores[positive & (scores >= found.threshold)].min()
    assert (scores[positive] > last).mean() < goal
    rounded = scores - 1e-6  # as another machine might compute them
    assert ((rounded >= found.threshold) >= (scores >= found.threshold))[scores > 0].all()


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


def test_an_operating_point_says_what_it_was_chosen_for() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    point = choose_operating_point(probabilities, np.array([0, 1, 1, 0]), ["nv", "mel"], "mel", 0.9)
    assert (point.name, point.target, point.goal) == ("mel", "mel", "sensitivity >= 0.90 on validation")
    assert (point.sensitivity, point.specificity) == (1, 0.5)
    assert 0.1 < point.threshold < 0.4
