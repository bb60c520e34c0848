"""Studies beside the pipeline, one file a question: what they choose is section `study` of params.yaml."""

from typing import Annotated

from pydantic import AfterValidator, Field

from dermtune.config import Config
from dermtune.recipe import Attribute, Unit


class TransferConfig(Config):
    """What does transfer buy? The same task, learned by eight networks."""

    input_size: Annotated[int, Field(ge=32, le=1024)]
    """Side of the images that all of them see, in pixels; what is trained whole takes time as its square."""
    shares: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2)]
    """Of the training lesions, rising to 1."""
    seeds: Annotated[int, Field(ge=2, le=50)]
    """Trainings of each network on each share, each from other lesions and first weights."""
    epochs: Annotated[int, Field(ge=4)]
    """On all lesions; on a share of them more, by the root of that share."""
    lr: dict[str, Annotated[float, Field(gt=0, le=1)]]
    """Peak learning rate of each network."""


class CostConfig(Config):
    """What does the model cost? Each stage, once more, under a meter."""

    country: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    """Whose electricity it is: ISO 3166 code of three letters."""


def _each_once(attributes: list[Attribute]) -> list[Attribute]:
    if len({*attributes}) < len(attributes):
        raise ValueError("expected each attribute once")
    return attributes


class BiasConfig(Config):
    """Whom does the network serve worse, and what do mitigations change?"""

    input_size: Annotated[int, Field(ge=32, le=1024)]
    """Side of the images, in pixels."""
    cut: Annotated[int, Field(ge=0)]
    """Blocks that are frozen, as `backbone.cut`; the further back, the longer each training takes."""
    images: Annotated[int, Field(ge=50)]
    """At most that many of training and validation, of all classes as equally many as there can be."""
    attributes: Annotated[list[Attribute], Field(min_length=1), AfterValidator(_each_once)]
    """By which people are grouped, and each mitigation trains, one attribute after another."""
    folds: Annotated[int, Field(ge=2, le=20)]
    """Each is judged by a network that learned from the others."""
    repeats: Annotated[int, Field(ge=1, le=50)]
    """Of all that, each with other folds and from other first weights."""
    epochs: Annotated[int, Field(ge=2)]
    """Of each training."""
    sensitivity: Annotated[Unit, Field(gt=0)]
    """For malignant lesions, of all groups together: what the threshold is chosen for."""


class StudyConfig(Config):
    """Studies beside the pipeline."""

    transfer: TransferConfig
    bias: BiasConfig
    cost: CostConfig
