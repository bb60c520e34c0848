"""Studies beside the pipeline, one file a question: what they choose is section `study` of params.yaml."""

from typing import Annotated

from pydantic import Field

from dermtune.config import Config


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


class StudyConfig(Config):
    """Studies beside the pipeline."""

    transfer: TransferConfig
    robustness: RobustnessConfig
