"""All of params.yaml: the section of each stage, and those that stages share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from dermtune.config import BackboneConfig, Sections
from dermtune.engine import ComputeConfig
from dermtune.recipe import FinetuneConfig
from dermtune.stages.augment import AugmentConfig
from dermtune.stages.calibrate import CalibrateConfig
from dermtune.stages.embed import EmbedConfig
from dermtune.stages.evaluate import EvaluateConfig
from dermtune.stages.export import ExportConfig
from dermtune.stages.ingest import IngestConfig
from dermtune.stages.search import SearchConfig
from dermtune.studies import StudyConfig
from dermtune.upkeep import MonitorConfig, RetrainConfig
from dermtune_bundle.files import atomic_path


class Params(Sections):
    """params.yaml."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Every random draw comes from it."""
    compute: ComputeConfig
    ingest: IngestConfig
    augment: AugmentConfig
    backbone: BackboneConfig
    embed: EmbedConfig
    finetune: FinetuneConfig
    calibrate: CalibrateConfig
    search: SearchConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    retrain: RetrainConfig
    monitor: MonitorConfig
    study: StudyConfig

    @model_validator(mode="after")
    def _folds_need_plain_images(self) -> Self:
        if self.finetune.folds and not self.augment.plain:
            raise ValueError("finetune.folds: needs augment.plain: true")
        return self

    @model_validator(mode="after")
    def _what_is_searched_must_be_possible(self) -> Self:
        recipe = self.finetune.model_dump()
        for key, values in self.search.space.items():
            for value in values.ends():
                try:
                    FinetuneConfig.model_validate(recipe | {key: value})
                except ValidationError as error:
                    reason = error.errors()[0]["msg"]
                    raise ValueError(f"search.space.{key}: {reason}, got {value}") from error
        return self


def write_params(path: Path, section: str, values: Mapping[str, int | float]) -> None:
    """Change values of one section in params.yaml; all else in the file, comments too, stays as it is."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096  # break no line
    content = yaml.load(path.read_text(encoding="utf-8"))
    content[section].update(values)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def read_params(path: Path) -> Params:
    """Read and check the whole of params.yaml, so that a mistake in any section shows before any work starts.

    Raises:
        ConfigError: names each bad key, its value and what is allowed.
    """
    return Params.read(path)
