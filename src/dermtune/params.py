"""All of params.yaml: the section of each stage, and those that stages share."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from dermtune.config import BackboneConfig, Sections
from dermtune.stages.augment import AugmentConfig
from dermtune.stages.embed import EmbedConfig
from dermtune.stages.evaluate import EvaluateConfig
from dermtune.stages.export import ExportConfig
from dermtune.stages.finetune import FinetuneConfig
from dermtune.stages.ingest import IngestConfig


class Params(Sections):
    """params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Every random draw comes from it."""
    ingest: IngestConfig
    augment: AugmentConfig
    backbone: BackboneConfig
    embed: EmbedConfig
    finetune: FinetuneConfig
    evaluate: EvaluateConfig
    export: ExportConfig


def read_params(path: Path) -> Params:
    """Read and check the whole of params.yaml, so that a mistake in any section shows before any work starts.

    Raises:
        ConfigError: names each bad key, its value and what is allowed.
    """
    return Params.read(path)
