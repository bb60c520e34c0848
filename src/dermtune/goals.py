"""What is chosen on validation, and for what: words of the section `calibrate` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dermtune.config import Config
from dermtune.labels import require_class
from dermtune_bundle.manifest import MALIGNANT

Method = Literal["temperature", "vector", "isotonic"]
"""Of calibration."""
Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]


def require_target(name: str) -> str:
    """Give the name of a class, or `malignant`, back, for use in a config.

    Raises:
        ValueError: it is neither.
    """
    return name if name == MALIGNANT else require_class(name)


class Goal(Config):
    """What a threshold is chosen for, on validation."""

    target: Annotated[str, AfterValidator(require_target)]
    """A class, or `malignant`: all malignant classes together."""
    sensitivity: Annotated[float, Field(gt=0, le=1)] | None = None
    """The highest threshold that finds at least this share of them."""
    specificity: Annotated[float, Field(gt=0, le=1)] | None = None
    """The lowest threshold that leaves at least this share of the others alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sensitivity is not None and self.specificity is not None:
            raise ValueError("expected a sensitivity or a specificity, or neither: the largest sum of both")
        return self

    def __str__(self) -> str:
        """For people: `sensitivity >= 0.90`."""
        for name in ("sensitivity", "specificity"):
            if (value := getattr(self, name)) is not None:
                return f"{name} >= {value:.2f}"
        return "largest sum of sensitivity and specificity"
