"""The model that a study looks into: as torch trained it, with gradients, and as it is shipped."""

from pathlib import Path

from dermtune.config import BackboneConfig
from dermtune.errors import DataError
from dermtune.inference import read_model
from dermtune.tails import TrainedTails, read_tails
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract


def read_both(
    backbone: BackboneConfig, *, images: Path, tails: Path, model: Path, threads: int = 1
) -> tuple[TrainedTails, Graph, Contract]:
    """Read the trained tails and the graph that they are in.

    Args:
        backbone: what the tails were trained behind.
        images: what ingest wrote.
        tails: what finetune wrote.
        model: what calibrate wrote.
        threads: of the graph; 0: one a core.

    Raises:
        ConfigError: the backbone cannot be loaded.
        DataError: something is missing or damaged, or they are not of one training on these images.
    """
    trained = read_tails(tails, backbone=backbone, images=images)
    graph, contract = read_model(model, threads=threads)
    if any(contract.lineage.get(key) != value for key, value in trained.lineage.items()):
        raise DataError(f"{model}: not made of the tails of {tails}; re-run calibrate")
    return trained, graph, contract
