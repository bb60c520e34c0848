"""What finetune hands on: the trained tails, and what they learned from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from dermtune.backbone import Tail, Trunk, load_backbone, weights_fingerprint
from dermtune.config import BackboneConfig
from dermtune.errors import DataError
from dermtune.table import table_sha256
from dermtune.training import frequencies_of
from dermtune_bundle.files import atomic_path

WEIGHTS, LINEAGE = "tails.safetensors", "lineage.json"


@dataclass(frozen=True)
class TrainedTails:
    """Tails in eval mode, with the trunk that goes before them."""

    trunk: Trunk
    tails: list[Tail]
    lineage: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """K names, in the order of the logits."""
        return list(self.lineage["images"]["train"])

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """(K,) share of each class among the training images."""
        return frequencies_of(list(self.lineage["images"]["train"].values()))

    @property
    def class_balance(self) -> float:
        """How the loss weighed the classes."""
        return float(self.lineage["finetune"]["class_balance"])

    @property
    def decision_balance(self) -> float:
        """How classes weigh when one is named."""
        return float(self.lineage["finetune"]["decision_balance"])


def write_tails(tails: list[Tail], lineage: dict[str, Any], folder: Path) -> None:
    """Write the weights, without pickle, and what they were made from."""
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(nn.ModuleList(tails).state_dict(), temporary)
    with atomic_path(folder / LINEAGE) as temporary:
        temporary.write_text(json.dumps(lineage, indent=2) + "\n", encoding="utf-8")


def read_tails(folder: Path, *, backbone: BackboneConfig, images: Path | None = None) -> TrainedTails:
    """Read what `write_tails` wrote, behind the trunk that they were trained behind.

    Args:
        folder: where to.
        backbone: of the trunk.
        images: what ingest wrote, where the tails must have learned from its training images.

    Raises:
        ConfigError: the backbone cannot be loaded or cut.
        DataError: they are missing, damaged, or were trained behind another trunk or on another image table.
    """
    try:
        lineage = json.loads((folder / LINEAGE).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
        count = lineage["finetune"]["ensemble"]
        classes, trunk_sha256 = lineage["images"]["train"], lineage["activations"]["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{folder}: no trained tails, or damaged ones; re-run finetune") from error
    if images is not None and lineage.get("images_sha256") != table_sha256(images):
        # another split: what validates here may have been training there
        raise DataError(f"{folder}: trained on another image table than that of {images}; re-run finetune")
    network = load_backbone(backbone)
    if weights_fingerprint(network.trunk) != trunk_sha256:
        raise DataError(f"{folder}: trained behind another trunk than that of backbone; re-run finetune")
    tails = [network.tail(len(classes), dropout=0.0, seed=0).eval() for _ in range(count)]
    try:
        nn.ModuleList(tails).load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{folder / WEIGHTS}: not of this backbone's tail; re-run finetune") from error
    return TrainedTails(network.trunk, tails, lineage)
