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


class StudyConfig(Config):
    """Studies beside the pipeline."""

    transfer: TransferConfig
    where: WhereConfig
