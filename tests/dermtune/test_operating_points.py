import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dermtune.errors import ConfigError, DataError
from dermtune.goals import Goal
from dermtune.metrics import Predictions
from dermtune.operating_points import (
    balanced_threshold,
    choose_operating_points,
    require_targets,
    threshold_for_sensitivity,
    threshold_for_specificity,
)

CASES = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.integers(0, 8).map(lambda x: x / 8)),
        arrays(np.bool_, n).filter(lambda positive: positive.any() and not positive.all()),
    )
)


@pytest.mark.parametrize(
    ("goal", "threshold", "sensitivity"),
    [
        (1.0, 0.15, 1.0),
        (0.9, 0.15, 1.0),
        (0.75, 0.4, 1.0),  # two positives tie at 0.5: taking one takes both
        (0.5, 0.7, 0.5),
        (0.01, 0.85, 0.25),
    ],
)
def test_the_threshold_lies_just_below_the_last_positive_to_be_found(
    goal: float, threshold: float, sensitivity: float
) -> None:
    ties = goal == 0.75
    scores = np.array([0.9, 0.8, 0.5, 0.5 if ties else 0.2, 0.6, 0.3, 0.1])
    positive = np.array([1, 1, 1, 1, 0, 0, 0], dtype=bool)

    found = threshold_for_sensitivity(scores, positive, goal)

    assert found == pytest.approx(threshold)
    assert (scores[positive] >= found).mean() == sensitivity


@pytest.mark.parametrize(
    ("goal", "threshold", "specificity"),
    [
        (1.0, 0.75, 1.0),
        (0.9, 0.75, 1.0),
        (0.75, 0.45, 0.75),
        (0.5, 0.35, 0.5),
        (0.01, 0.15, 0.25),
    ],
)
def test_the_threshold_lies_just_above_the_last_negative_to_be_spared(
    goal: float, threshold: float, specificity: float
) -> None:
    scores = np.array([0.9, 0.8, 0.5, 0.2, 0.7, 0.4, 0.3, 0.1])
    positive = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool)
    found = threshold_for_specificity(scores, positive, goal)
    assert found == pytest.approx(threshold)
    assert (scores[~positive] < found).mean() == specificity


def test_a_goal_is_met_exactly_where_rounding_would_ask_for_one_more() -> None:
    scores, positive = np.linspace(1, 0.01, 100), np.ones(100, dtype=bool)
    found = threshold_for_sensitivity(scores, positive, 0.55)  # 0.55 * 100 is 55.00000000000001
    assert (scores >= found).mean() == 0.55


@settings(max_examples=100, deadline=None)
@given(CASES, st.floats(0.01, 1))
def test_a_sensitivity_is_reached_and_by_no_higher_score(
    case: tuple[np.ndarray, np.ndarray], goal: float
) -> None:
    scores, positive = case
    threshold = threshold_for_sensitivity(scores, positive, goal)
    assert (scores[positive] >= threshold).mean() >= goal
    last = scores[positive & (scores >= threshold)].min()
    assert (scores[positive] > last).mean() < goal
    rounded = scores - 1e-6  # as another machine might compute them
    assert ((rounded >= threshold) >= (scores >= threshold))[scores > 0].all()


@settings(max_examples=100, deadline=None)
@given(CASES, st.floats(0.01, 1))
def test_a_specificity_is_reached_and_by_no_lower_score(
    case: tuple[np.ndarray, np.ndarray], goal: float
) -> None:
    scores, positive = case
    scores = scores * 0.9  # certainty is no score of a softmax
    threshold = threshold_for_specificity(scores, positive, goal)
    assert (scores[~positive] < threshold).mean() >= goal
    last = scores[~positive & (scores < threshold)].max()
    assert (scores[~positive] < last).mean() < goal


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_no_other_threshold_is_better_balanced(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, positive = case

    def youden(threshold: float) -> float:
        flagged = scores >= threshold
        return float(flagged[positive].mean() - flagged[~positive].mean())

    found = balanced_threshold(scores, positive)
    assert youden(found) == pytest.approx(max(youden(score) for score in scores))


def predictions(labels: list[int]) -> Predictions:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.8, 0.1, 0.1]])
    ids = np.array(list("abcd"), dtype=object)
    named = probabilities.argmax(1)
    classes, malignant = ("nv", "mel", "bcc"), (False, True, True)
    return Predictions(classes, probabilities, np.array(labels), named, ids, malignant)


def test_each_goal_gets_its_point_which_says_what_it_was_chosen_for() -> None:
    goals = {
        "mel": Goal(target="mel", sensitivity=0.9),
        "rule-in": Goal(target="malignant", specificity=0.5),
        "balanced": Goal(target="malignant"),
    }
    mel, rule_in, balanced = choose_operating_points(predictions([0, 1, 2, 0]), goals)
    assert (mel.name, mel.target, mel.goal) == ("mel", "mel", "sensitivity >= 0.90 on validation")
    assert mel.threshold == pytest.approx((0.5 + 0.3) / 2)
    assert (mel.sensitivity, mel.specificity) == (1, 1)
    assert rule_in.goal == "specificity >= 0.50 on validation"
    assert rule_in.threshold == pytest.approx((0.2 + 0.3) / 2)
    assert (rule_in.sensitivity, rule_in.specificity) == (1, 0.5)
    assert balanced.goal == "largest sum of sensitivity and specificity on validation"
    assert balanced.threshold == pytest.approx((0.3 + 0.7) / 2)


@pytest.mark.parametrize(("labels", "what"), [([0, 0, 0, 0], "no"), ([1, 2, 2, 1], "all")])
def test_a_target_that_nothing_or_everything_is_of_is_an_error(labels: list[int], what: str) -> None:
    goals = {"rule-out": Goal(target="malignant", sensitivity=0.95)}
    with pytest.raises(
        DataError, match=f"operating point 'rule-out': {what} validation images are malignant"
    ):
        choose_operating_points(predictions(labels), goals)


def test_targets_are_checked_against_the_classes_before_any_training() -> None:
    require_targets({"one": Goal(target="malignant")}, {"nv": False, "mel": True})
    with pytest.raises(
        ConfigError, match=r"calibrate\.operating_points\.one\.target: none of .* nv, df is mal"
    ):
        require_targets({"one": Goal(target="malignant")}, {"nv": False, "df": False})
    with pytest.raises(ConfigError, match=r"points\.one\.target: 'bcc' is no class; the classes are nv, mel"):
        require_targets({"one": Goal(target="bcc")}, {"nv": False, "mel": True})
