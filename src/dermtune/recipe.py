"""The recipe of the tail's training: section `finetune` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from dermtune.config import Config, Device
from dermtune.labels import require_class
from dermtune_bundle.manifest import MALIGNANT

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
Unit = Annotated[float, Field(ge=0, le=1)]


def _not_one(folds: int) -> int:
    if folds == 1:
        raise ValueError("expected 0 for none, or at least 2")
    return folds


def _require_target(name: str) -> str:
    return name if name == MALIGNANT else require_class(name)


class Goal(Config):
    """What a threshold is chosen for, on validation."""

    target: Annotated[str, AfterValidator(_require_target)]
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


class FinetuneConfig(Config):
    """The recipe of the tail's training."""

    epochs: Annotated[int, Field(ge=1)]
    head_epochs: Annotated[int, Field(ge=0)]
    """Epochs in which the classifier alone learns."""
    batch_size: Annotated[int, Field(ge=2)]
    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate of the classifier."""
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    """Each layer group (block, or convolution or norm between) back from the classifier learns at this share
    of the next one's rate."""
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps over which the rate rises."""
    class_balance: Unit
    """In the loss: 0 weighs images alike, 1 weighs classes alike."""
    decision_balance: Unit
    """When one class is named: 0 names the most probable, 1 gives each class's recall the same weight."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the averaged weights, per step."""
    patience: Annotated[int, Field(ge=1)]
    """Epochs without a better one on validation before training stops."""
    ensemble: Annotated[int, Field(ge=1, le=20)]
    """Tails that are trained from different seeds, and whose logits are averaged; 1: a single one."""
    test_views: Literal[1, 2, 4, 8]
    """Flips and turns of each image whose logits the graph averages; 1: the image as it is."""
    folds: Annotated[int, Field(ge=0, le=20), AfterValidator(_not_one)]
    """Cross-validation on the training images: this many more trainings, for an estimate; 0: none."""
    operating_points: Annotated[dict[Name, Goal], Field(min_length=1)]
    """By name: thresholds at which to act."""
    device: Device
