"""The training task: classes, labelled activations and the network that they came from, read and checked."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from dermtune.backbone import Backbone, load_backbone
from dermtune.config import BackboneConfig
from dermtune.errors import ConfigError, DataError
from dermtune.fingerprint import code_fingerprint, versions
from dermtune.groups import read_groups
from dermtune.recipe import Attribute
from dermtune.shards import open_array, view_paths
from dermtune.table import classes_of, read_table, table_sha256
from dermtune.training import Examples
from dermtune.trunk import Fingerprint

_MODULES = (
    "dermtune.appearance",
    "dermtune.calibration",
    "dermtune.checkpoint",
    "dermtune.cross_validation",
    "dermtune.distributed",
    "dermtune.groups",
    "dermtune.metrics",
    "dermtune.mitigation",
    "dermtune.splits",
    "dermtune.subgroups",
    "dermtune.task",
    "dermtune.training",
)
_PACKAGES = ("dermtune", "torch", "timm", "onnxruntime", "scikit-learn")


@dataclass(frozen=True)
class Task:
    """What every training on stored activations starts from."""

    classes: list[str]
    network: Backbone
    train: Examples
    val: Examples
    plain: Examples | None
    """The training images as they are, unvaried, where augment made them."""
    train_table: pd.DataFrame
    """Rows of the image table, in the order of `train`."""
    val_table: pd.DataFrame
    lineage: dict[str, Any]
    """Of all this, as JSON knows it: what a model made from it must name."""


def read_task(
    images: Path,
    activations: Path,
    *,
    backbone: BackboneConfig,
    seed: int,
    groups: Attribute | None = None,
) -> Task:
    """Read what ingest and embed wrote, and make sure that it belongs together.

    Args:
        images: what ingest wrote.
        activations: what embed wrote.
        backbone: the network whose trunk made them.
        seed: of the trainings, for the lineage.
        groups: what the training images are to be told apart by, for a mitigation; None: nothing.

    Raises:
        ConfigError: the backbone cannot be loaded or cut, or all training images are of one group.
        DataError: the activations are stale, foreign or missing.
    """
    train, val = (read_table(images / "images.parquet", split=split) for split in ("train", "val"))
    names = classes_of(train)
    network = load_backbone(backbone)
    made_from = Fingerprint.read(activations / "activations.json")
    images_sha256 = table_sha256(images)
    made_from.require(network.trunk, backbone, images_sha256=images_sha256)
    paths = view_paths(activations)
    if made_from.views.get("views") != len(paths):
        raise DataError(
            f"{activations}: {len(paths)} views where activations.json says {made_from.views.get('views')};"
            " re-run embed"
        )
    targets = {name: index for index, name in enumerate(names)}

    def examples(table: pd.DataFrame, *paths: Path) -> Examples:
        views = [open_array(path, rows=len(table)) for path in paths]
        return Examples(views, torch.tensor(table["label"].map(targets)))

    plain = activations / "plain.npy"
    numbers, of_groups = (None, {}) if groups is None else _groups(images, train, groups)
    return Task(
        classes=names,
        network=network,
        train=replace(examples(train, *paths), groups=numbers),
        val=examples(val, activations / "val.npy"),
        plain=examples(train, plain) if plain.exists() else None,
        train_table=train,
        val_table=val,
        lineage={
            "source": ", ".join(sorted(train["source"].unique())),
            "images": {
                split: {name: int((table["label"] == name).sum()) for name in names}
                for split, table in (("train", train), ("val", val))
            },
            "images_sha256": images_sha256,
            "backbone": backbone.model_dump(),
            "activations": asdict(made_from),
            "seed": seed,
            "code_sha256": code_fingerprint(*_MODULES),
            "versions": versions(*_PACKAGES),
        }
        | of_groups,
    )


def _groups(
    images: Path, train: pd.DataFrame, attribute: Attribute
) -> tuple[torch.Tensor, dict[str, dict[str, int]]]:
    """The group of each training image, as a number, and what the lineage says of the groups."""
    names = read_groups(images, train, [attribute])[attribute]
    found = np.unique(names)
    if len(found) == 1:
        raise ConfigError(
            f"finetune.groups: in {attribute}, all training images are {found[0]!r}: there is nothing for"
            " finetune.mitigation to weigh; choose another attribute, or none"
        )
    counts = {str(name): int((names == name).sum()) for name in found}
    return torch.from_numpy(np.searchsorted(found, names)), {"groups": counts}
