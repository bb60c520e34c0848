import optuna
import pytest
from pydantic import ValidationError

from dermtune.search_space import Choices, Span


def test_a_span_gives_three_digits_within_its_ends() -> None:
    span = Span(low=0.0005, high=0.01, log=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [span.suggest(study.ask(), "lr") for _ in range(50)]
    assert all(span.holds(value) and value == float(f"{value:.3g}") for value in drawn)
    assert min(drawn) < 0.001
    assert max(drawn) > 0.005
    assert not span.holds(0.02)


def test_no_value_is_rounded_out_of_its_span() -> None:
    span = Span(low=0.9991, high=0.9999)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    assert all(span.holds(span.suggest(study.ask(), "ema")) for _ in range(50))


def test_choices_give_one_of_them() -> None:
    choices = Choices(choices=[0, 0.05, 16])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    assert {choices.suggest(study.ask(), "x") for _ in range(30)} == {0, 0.05, 16}
    assert choices.holds(16)
    assert not choices.holds(0.1)


@pytest.mark.parametrize(
    "values", [{"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 1.0, "log": True}, {"low": 1.0, "high": 1.0}]
)
def test_an_impossible_span_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="low < high, and low above 0"):
        Span.model_validate(values)
