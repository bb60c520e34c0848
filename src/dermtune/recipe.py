"""The recipe of the tail's training: section `finetune` of params.yaml."""

from typing import Annotated

from pydantic import AfterValidator, Field

from dermtune.config import Config, Device

Unit = Annotated[float, Field(ge=0, le=1)]


def _not_one(folds: int) -> int:
    if folds == 1:
        raise ValueError("expected 0 for none, or at least 2")
    return folds


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
    folds: Annotated[int, Field(ge=0, le=20), AfterValidator(_not_one)]
    """Cross-validation on the training images: this many more trainings, for an estimate; 0: none."""
    device: Device
