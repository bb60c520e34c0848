"""Studies beside the pipeline, one file a question: what they choose is section `study` of params.yaml."""

from itertools import pairwise
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from dermtune.config import Config

N = TypeVar("N", int, float)


def _rising(values: list[N]) -> list[N]:
    if any(one >= other for one, other in pairwise(values)):
        raise ValueError("expected numbers that rise")
    return values


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
    attacks: AttacksConfig
