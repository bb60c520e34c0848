import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame, equalized_odds_difference, true_positive_rate

from dermtune.metrics import Predictions
from dermtune.subgroups import (
    ATTRIBUTES,
    LEAST_LESIONS,
    NOT_GIVEN,
    gaps,
    groups_of,
    measure_subgroups,
    worst_group,
)
from dermtune_bundle.manifest import OperatingPoint

POINT = OperatingPoint("rule-out", "malignant", 0.4, "a goal", None, None)
IMAGES = 400


def make_predictions(seed: int = 0) -> tuple[Predictions, np.ndarray]:
    """Two groups; in the second, malignant lesions score lower."""
    rng = np.random.default_rng(seed)
    labels, group = rng.integers(2, size=IMAGES), rng.integers(2, size=IMAGES)
    score = np.clip(rng.normal(0.35 + 0.3 * labels * (group == 0), 0.1), 0, 1)
    probabilities = np.stack([score, 1 - score], axis=1)
    ids = np.array([f"L{number // 2}" for number in range(IMAGES)], dtype=object)
    named = probabilities.argmax(1)
    return Predictions(("mel", "nv"), probabilities, 1 - labels, named, ids, (True, False)), group


def frame(group: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"sex": np.where(group == 0, "female", "male")})


def test_each_group_is_measured_as_if_it_were_alone() -> None:
    predictions, group = make_predictions()
    table = measure_subgroups(predictions, frame(group), POINT, draws=200, rng=np.random.default_rng(0))
    scores, positive = predictions.of("malignant")
    assert set(table["group"]) == {"female", "male"}
    for row in table.itertuples():
        members = group == (0 if row.group == "female" else 1)
        assert row.images == members.sum()
        assert row.sensitivity == pytest.approx((scores[members & positive] >= 0.4).mean())
        assert row.specificity == pytest.approx((scores[members & ~positive] < 0.4).mean())
        assert row.sensitivity_low <= row.sensitivity <= row.sensitivity_high
        assert row.auroc_low < row.auroc < row.auroc_high


def test_the_worst_group_and_the_gaps_are_fairlearns() -> None:
    predictions, group = make_predictions()
    table = measure_subgroups(predictions, frame(group), POINT, draws=100, rng=np.random.default_rng(0))
    scores, positive = predictions.of("malignant")
    said, sex = scores >= 0.4, frame(group)["sex"]
    theirs = MetricFrame(metrics=true_positive_rate, y_true=positive, y_pred=said, sensitive_features=sex)
    worst = worst_group(table)
    assert worst["group"] == theirs.by_group.idxmin() == "male"
    (found,) = gaps(table).itertuples()
    assert found.sensitivity_gap == pytest.approx(theirs.difference())
    odds = equalized_odds_difference(positive, said, sensitive_features=sex)
    assert max(found.sensitivity_gap, found.specificity_gap) == pytest.approx(odds)


def test_a_group_too_small_to_judge_is_not_judged_and_not_the_worst() -> None:
    predictions, group = make_predictions()
    few = np.flatnonzero(predictions.of("malignant")[1])[: LEAST_LESIONS - 1]
    groups = frame(group)
    groups.loc[few, "sex"] = "other"
    table = measure_subgroups(predictions, groups, POINT, draws=100, rng=np.random.default_rng(0))
    other = table[table["group"] == "other"].iloc[0]
    assert (other["images"], other["negatives"]) == (LEAST_LESIONS - 1, 0)
    assert other[["sensitivity", "specificity", "auroc"]].isna().all()
    assert worst_group(table)["group"] != "other"


def test_every_image_is_in_one_group_of_each_attribute() -> None:
    table = pd.DataFrame(
        {
            "age": pd.array([29.0, 30.0, 75.0, None], "Float64"),
            "sex": ["male", None, "female", "male"],
            "site": ["back", "face", None, "back"],
            "dx_type": ["histo", "histo", "follow_up", None],
            "skin_tone": pd.array([None, "IV", None, None], "string"),
            "source": ["a", "a", "b", "b"],
            "ita": [60.0, 41.5, -45.0, None],
            "lesion_share": [0.05, 0.2, 0.5, 0.3],
        }
    )
    groups = groups_of(table)
    assert list(groups) == list(ATTRIBUTES)
    assert groups["age"].tolist() == ["under 30", "30 to 44", "75 and over", NOT_GIVEN]
    assert groups["sex"].tolist() == ["male", NOT_GIVEN, "female", "male"]
    assert groups["skin_tone"].tolist() == [
        "very light (estimated)",
        "type IV",  # what is given is not estimated
        "dark (estimated)",
        NOT_GIVEN,
    ]
    assert groups["lesion_size"].str.split(" ").str[0].tolist() == ["small", "medium", "large", "large"]


def test_what_is_not_given_is_shown_last_and_compared_with_nothing() -> None:
    predictions, group = make_predictions()
    groups = frame(group)
    groups["sex"] = groups["sex"].replace("male", NOT_GIVEN)
    table = measure_subgroups(predictions, groups, POINT, draws=100, rng=np.random.default_rng(0))
    assert table["group"].tolist() == ["female", NOT_GIVEN]
    assert worst_group(table) is None
    assert gaps(table)["sensitivity_gap"].isna().all()
    assert worst_group(table.iloc[:0]) is None
