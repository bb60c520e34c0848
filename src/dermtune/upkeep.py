"""What is asked of a model in use: sections `retrain` and `monitor` of params.yaml."""

from typing import Annotated

from pydantic import Field

from dermtune.config import Config


class MarginConfig(Config):
    """How much worse is still no worse, over all lesions."""

    auroc: Annotated[float, Field(gt=0, lt=1)]
    sensitivity: Annotated[float, Field(gt=0, lt=1)]
    specificity: Annotated[float, Field(gt=0, lt=1)]


class RetrainConfig(Config):
    """When a new bundle may replace the champion."""

    margin: MarginConfig
    subgroup_margin: Annotated[float, Field(gt=0, lt=1)]
    """How much worse is still no worse in a subgroup, of each metric."""


class MonitorConfig(Config):
    """When the images of today count as other than those of the calibration."""

    days: Annotated[int, Field(ge=1)]
    """How far back recent images go."""
    least: Annotated[int, Field(ge=10)]
    """Fewest recent images of which anything is said."""
    level: Annotated[float, Field(ge=0.001, le=0.2)]
    """Chance of any false alarm in one look, all tests together."""
    effect: Annotated[float, Field(ge=0, lt=1)]
    """Smallest difference that counts, of a share or of a distribution, 0 to 1."""
    unanswered: Annotated[float, Field(gt=0, lt=1)]
    """Largest share of the inbox's files that may fail."""
