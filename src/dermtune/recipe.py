"""The recipe of the tail's training: section `finetune` of params.yaml."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dermtune.config import Config, Device

Unit = Annotated[float, Field(ge=0, le=1)]
Mitigation = Literal["none", "reweighting", "group_balanced", "group_dro"]
Attribute = Literal["sex", "age", "site", "skin_tone", "lesion_size", "source"]
"""Of those of `subgroups.ATTRIBUTES` that are known before the diagnosis is."""


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
    mitigation: Mitigation
    """How groups of people weigh: `reweighting`, `group_balanced`, `group_dro`, or `none`: as they come."""
    groups: Attribute
    """Whom the mitigation is about."""
    group_step: Annotated[float, Field(gt=0, le=1)]
    """Of group_dro: how fast weight moves to groups with a higher loss, a batch."""
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

    @property
    def weighed_groups(self) -> Attribute | None:
        """Whom the mitigation is about; None: there is none."""
        return None if self.mitigation == "none" else self.groups
