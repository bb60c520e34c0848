import pytest
from pydantic import ValidationError

from dermtune.goals import Goal


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "mole"}, "'mole' is no class"),
        ({"target": "mel", "sensitivity": 0}, "greater than 0"),
        (
            {"target": "mel", "sensitivity": 0.9, "specificity": 0.9},
            "a sensitivity or a specificity, or neither",
        ),
    ],
)
def test_an_impossible_goal_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Goal.model_validate(values)


def test_a_goal_says_what_it_asks_for() -> None:
    assert str(Goal(target="mel", sensitivity=0.9)) == "sensitivity >= 0.90"
    assert str(Goal(target="malignant", specificity=0.95)) == "specificity >= 0.95"
    assert str(Goal(target="malignant")) == "largest sum of sensitivity and specificity"
