import pytest
from pydantic import ValidationError

from dermtune.recipe import FinetuneConfig

RECIPE = {
    "epochs": 4,
    "head_epochs": 1,
    "batch_size": 16,
    "lr": 0.003,
    "layer_decay": 0.8,
    "weight_decay": 0.02,
    "warmup": 0.1,
    "class_balance": 0.5,
    "decision_balance": 1,
    "mitigation": "none",
    "groups": "sex",
    "group_step": 0.01,
    "label_smoothing": 0.0,
    "dropout": 0.2,
    "ema": 0.9,
    "patience": 4,
    "ensemble": 1,
    "folds": 0,
    "device": "cpu",
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("folds", 1, "expected 0 for none, or at least 2"),
        ("ensemble", 0, "greater than or equal to 1"),
        ("class_balance", 1.5, "less than or equal to 1"),
        ("mitigation", "fairness", "Input should be 'none', 'reweighting', 'group_balanced' or 'group_dro'"),
        ("groups", "dx_type", "Input should be 'sex', 'age'"),
        ("group_step", 0.0, "greater than 0"),
    ],
)
def test_impossible_recipes_are_refused(key: str, value: object, message: str) -> None:
    assert FinetuneConfig.model_validate(RECIPE).epochs == 4
    with pytest.raises(ValidationError, match=message):
        FinetuneConfig.model_validate(RECIPE | {key: value})


def test_groups_count_only_where_something_weighs_them() -> None:
    recipe = FinetuneConfig.model_validate(RECIPE)
    assert recipe.weighed_groups is None
    assert recipe.model_copy(update={"mitigation": "group_dro"}).weighed_groups == "sex"
