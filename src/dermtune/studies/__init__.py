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


class StudyConfig(Config):
    """Studies beside the pipeline."""

    transfer: TransferConfig
    microscope: MicroscopeConfig
