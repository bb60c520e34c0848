"""What a search may try: spans of numbers and choices among a few, as params.yaml writes them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from dermtune.config import Config

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Number = int | float
Sampler = Literal["tpe", "random", "grid"]


class Span(Config):
    """All numbers between two."""

    low: float
    high: float
    log: bool = False
    """Draw the logarithm evenly: for numbers whose order of magnitude is unknown."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("expected low < high, and low above 0 where log is true")
        return self

    def ends(self) -> list[Number]:
        """What must be possible for all between to be."""
        return [self.low, self.high]

    def holds(self, value: Number) -> bool:
        """Is the value one of these?"""
        return self.low <= value <= self.high

    def suggest(self, trial: "BaseTrial", name: str) -> Number:
        """Draw a value, of three digits (what people write down) unless that leaves the span."""
        drawn = trial.suggest_float(name, self.low, self.high, log=self.log)
        short = float(f"{drawn:.3g}")
        return short if self.holds(short) else drawn


class Choices(Config):
    """One of a few numbers."""

    choices: Annotated[list[Number], Field(min_length=1)]

    def ends(self) -> list[Number]:
        """What must be possible."""
        return self.choices

    def holds(self, value: Number) -> bool:
        """Is the value one of these?"""
        return value in self.choices

    def suggest(self, trial: "BaseTrial", name: str) -> Number:
        """Draw a value."""
        value: Number = trial.suggest_categorical(name, self.choices)
        return value


Space = Mapping[str, Span | Choices]
