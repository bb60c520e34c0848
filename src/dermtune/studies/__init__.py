"""Studies beside the pipeline, one file a question: what they choose is section `study` of params.yaml."""

from itertools import pairwise
from typing import Annotated, Literal, Self, TypeVar, get_args

from pydantic import AfterValidator, Field, model_validator

from dermtune.config import Config
from dermtune.recipe import Attribute, Unit

N = TypeVar("N", int, float)


def _rising(values: list[N]) -> list[N]:
    if any(one >= other for one, other in pairwise(values)):
        raise ValueError("expected numbers that rise")
    return values


NetworkName = Literal[
    "linear", "fully_connected", "cnn", "cnn_batch_norm", "untrained", "frozen", "tail", "whole"
]


def _rising_to_all(shares: list[float]) -> list[float]:
    if shares != sorted({*shares}) or shares[-1] != 1:
        raise ValueError("expected rising shares, the last one 1")
    return shares


class TransferConfig(Config):
    """What does transfer buy? The same task, learned by eight networks."""

    input_size: Annotated[int, Field(ge=32, le=1024)]
    """Side of the images that all of them see, in pixels; what is trained whole takes time as its square."""
    images: Annotated[int, Field(ge=50)]
    """At most, of training, as they come; of validation at most half as many, of all classes alike."""
    shares: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2), AfterValidator(_rising_to_all)
    ]
    """Of the training lesions, rising to 1."""
    seeds: Annotated[int, Field(ge=2, le=50)]
    """Trainings of each network on each share, each from other lesions and first weights."""
    epochs: Annotated[int, Field(ge=4)]
    """On all lesions; on a share of them more, by the root of that share."""
    lr: dict[NetworkName, Annotated[float, Field(gt=0, le=1)]]
    """Peak learning rate of each network."""

    @model_validator(mode="after")
    def _require_each_rate(self) -> Self:
        if missing := [name for name in get_args(NetworkName) if name not in self.lr]:
            raise ValueError(f"lr: none of {', '.join(missing)}")
        return self


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


class MicroscopeConfig(Config):
    """What do the layers respond to, and which images lie near each other?"""

    images: Annotated[int, Field(ge=16)]
    """Training images, at most, that are searched for those that excite a channel most."""
    patches: Annotated[int, Field(ge=1, le=20)]
    """Of them that are shown, each of another lesion."""
    channels: Annotated[int, Field(ge=1, le=20)]
    """Channels of each layer that are shown."""
    painted: Annotated[int, Field(ge=0, le=20)]
    """Channels of each layer for which a picture is made that excites them."""
    steps: Annotated[int, Field(ge=1, le=5_000)]
    """Of making it."""
    picture: Annotated[int, Field(ge=32, le=512)]
    """Its side, in pixels."""
    mapped: Annotated[int, Field(ge=8, le=2_000)]
    """Validation images, at most, on the map; each makes the page about 15 kB larger."""
    neighbors: Annotated[int, Field(ge=1, le=20)]
    """Of each image, that are shown and counted."""


class WhereConfig(Config):
    """Where does the network look? Maps of the class that it names, against outlines of the lesions."""

    images: Annotated[int, Field(ge=10)]
    """Of validation, at most; the classes as equally often as they can be."""
    occluded: Annotated[int, Field(ge=4)]
    """Of these, how many are covered part by part: each takes (2 / `window` - 1)² answers of the network."""
    window: Annotated[float, Field(ge=0.05, le=0.5)]
    """Side of what covers them, as a share of the image's; it moves by half of that."""
    agreement: Annotated[float, Field(ge=-1, le=1)]
    """Least rank correlation of two maps that count as agreeing."""


class RobustnessConfig(Config):
    """Does it still know a lesion that was photographed badly, or a pixel further to the left?"""

    images: Annotated[int, Field(ge=20)]
    """Of validation, at most, each class as equally often as it can be; each is seen about eighty times."""
    side: Annotated[int, Field(ge=64, le=2048)]
    """Shorter side of a photograph before anything happens to it, in pixels; a smaller one stays as it is."""
    shifts: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1)]
    """By how many of the network's pixels an image is moved."""
    angles: Annotated[list[Annotated[float, Field(gt=0, le=180)]], Field(min_length=1)]
    """By how many degrees it is turned, either way."""
    scales: Annotated[list[Annotated[float, Field(gt=0, le=50)]], Field(min_length=1)]
    """By how many per cent it is made larger or smaller."""


class HardeningConfig(Config):
    """Adversarial training of the tail: does it help, and what does it cost?"""

    epochs: Annotated[int, Field(ge=0)]
    """Over the images, each epoch in the next of their eight flips and turns; 0: no such training."""
    images: Annotated[int, Field(ge=32)]
    """Training images, at most."""
    eps: Annotated[int, Field(ge=1, le=64)]
    """Largest change of a colour value in training, in grey levels of 255."""
    lr: Annotated[float, Field(gt=0, le=1)]
    """Of the classifier, at the peak; blocks further back learn slower, as in `finetune`."""


class AttacksConfig(Config):
    """How small a change makes the model err?"""

    images: Annotated[int, Field(ge=8)]
    """Validation images that are attacked, at most; half of them are the first operating point's targets."""
    points: Annotated[list[str], Field(min_length=1)]
    """Operating points, of `calibrate.operating_points`, whose positives are attacked to be missed."""
    linf: Annotated[list[Annotated[int, Field(ge=1, le=128)]], Field(min_length=2), AfterValidator(_rising)]
    """Largest changes of a colour value, in grey levels of 255; a file holds whole ones alone."""
    l2: Annotated[list[Annotated[float, Field(gt=0, le=100)]], Field(min_length=2), AfterValidator(_rising)]
    """Largest Euclidean norms of a change, of pixels scaled to 0 to 1."""
    patch: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1), AfterValidator(_rising)]
    """Sides of a square in a corner that may be anything, as shares of the image's side."""
    steps: Annotated[int, Field(ge=2, le=1000)]
    """Of attacks that follow the gradient step by step."""
    queries: Annotated[int, Field(ge=2)]
    """How often the black-box attack may ask the graph about each image."""
    hardening: HardeningConfig
    """Adversarial training of the tail."""


class StudyConfig(Config):
    """Studies beside the pipeline."""

    transfer: TransferConfig
    robustness: RobustnessConfig
    attacks: AttacksConfig
    bias: BiasConfig
    microscope: MicroscopeConfig
    where: WhereConfig
    cost: CostConfig
