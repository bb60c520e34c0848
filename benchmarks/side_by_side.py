"""What the side-by-side benchmarks share: the same images, weights, cut, epochs and batch size for both.

HAM10000 where it is, else drawn images. A part of the lesions is enough for a ratio, as the cost of either
side grows with the number of images. Both sides validate on the same activations: dermtune's time includes
making them, a conventional loop would have to make them at every epoch, and is spared it.
"""

import argparse
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from dermtune.backbone import Backbone, Tail, load_backbone
from dermtune.calibration import softmax
from dermtune.figures import BLUE, GREEN, VERMILION, write_figure
from dermtune.metrics import auroc
from dermtune.params import Params, read_params
from dermtune.recipe import FinetuneConfig
from dermtune.splits import assign_folds
from dermtune.stages.augment import augment
from dermtune.stages.embed import embed
from dermtune.stages.ingest import ingest
from dermtune.table import read_table, write_table
from dermtune.task import Task, read_task
from dermtune.training import EpochRecord, train_tail
from dermtune.trunk import resolve_device

HAM10000 = Path("../shared/data/ham10000")
LEVELS = (0.80, 0.85, 0.88, 0.90, 0.92)


@dataclass
class Curve:
    """Seconds since the start, and the validation AUROC reached by then."""

    name: str
    began: float = field(default_factory=time.perf_counter)
    seconds: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def add(self, area: float) -> None:
        """An epoch ended."""
        self.seconds.append(time.perf_counter() - self.began)
        self.areas.append(area)

    def on_epoch(self, record: EpochRecord) -> None:
        """As `train_tail` calls it."""
        self.add(record.val_auroc)

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.seconds[-1]

    def until(self, level: float) -> float | None:
        """Seconds until the AUROC was first that high."""
        return next((s for s, area in zip(self.seconds, self.areas, strict=True) if area >= level), None)


@dataclass(frozen=True)
class Setting:
    """The same for both sides."""

    params: Params
    images: Path
    """As ingest writes it: the table names the images that take part."""
    work: Path
    plot: Path | None
    device: str

    @property
    def recipe(self) -> FinetuneConfig:
        """Of the tail."""
        return self.params.finetune

    def network(self) -> Backbone:
        """The pretrained backbone, cut."""
        return load_backbone(self.params.backbone)

    @property
    def views_folder(self) -> Path:
        """Where augmented views lie."""
        return self.work / "views"

    def activations(self, views: int) -> Task:
        """What dermtune does before training: views, and the trunk over each, once."""
        made, out = self.views_folder, self.work / f"activations-{views}"
        params = self.params
        config = params.augment.model_copy(update={"views": views})
        augment(config, input_size=params.backbone.input_size, seed=params.seed, images=self.images, out=made)
        embed(params.embed, backbone=params.backbone, views=made, out=out)
        return read_task(self.images, out, backbone=params.backbone, seed=params.seed)

    def train(self, task: Task, *, seed: int = 1, curve: Curve | None = None) -> Tail:
        """What dermtune does then; gives the epoch that was kept."""
        tail = task.network.tail(len(task.classes), dropout=self.recipe.dropout, seed=seed)
        train, on_epoch = task.train.resident(self.device), curve.on_epoch if curve else None
        return train_tail(
            tail, train, task.val, self.recipe, seed=seed, device=self.device, on_epoch=on_epoch
        )[0]


def read_setting(
    description: str, *, images: int, epochs: int = 20, cut: int = 6, all_validation: bool = False
) -> Setting:
    """Parse the command line, whose defaults are given, and choose the images that take part.

    Of validation as large a part as of training, or all.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--images", type=int, default=images, help="training images, about")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--cut", type=int, default=cut)
    parser.add_argument("--views", type=int, default=4, help="of each training image, in dermtune")
    parser.add_argument("--work", type=Path, default=Path("/tmp/dermtune-benchmark"))  # noqa: S108
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="of both sides")
    parser.add_argument("--plot", type=Path, help="PNG of AUROC over time to write")
    chosen = parser.parse_args()
    logging.basicConfig(format="  %(message)s")
    params = read_params(Path("params.yaml"))
    source = {"source": "ham10000", "path": str(HAM10000)} if HAM10000.is_dir() else {"source": "synthetic"}
    params = params.model_copy(
        update={
            "ingest": params.ingest.model_copy(update=source),
            "augment": params.augment.model_copy(update={"views": chosen.views}),
            "backbone": params.backbone.model_copy(update={"cut": chosen.cut}),
            "finetune": params.finetune.model_copy(
                update={"epochs": chosen.epochs, "patience": chosen.epochs, "device": chosen.device}
            ),
            "embed": params.embed.model_copy(update={"device": chosen.device}),
        }
    )
    ingested = f"{params.seed} {params.ingest.model_dump_json()}"
    whole = chosen.work / f"{source['source']}-{hashlib.sha256(ingested.encode()).hexdigest()[:8]}"
    if not (whole / "images.parquet").exists():
        ingest(params.ingest, seed=params.seed, out=whole)
    part = chosen.work / "images"
    _choose(whole, part, images=chosen.images, seed=params.seed, all_validation=all_validation)
    device = resolve_device(chosen.device, key="--device")
    return Setting(params, part, chosen.work, chosen.plot, device)


def validation_auroc(tail: nn.Module, task: Task, device: str) -> float:
    """Macro AUROC of what follows the trunk, of another library, on the stored activations of validation."""
    tail.eval()
    parts = torch.arange(len(task.val.labels)).split(64)
    with torch.inference_mode():
        logits = torch.cat([tail(x).float().cpu() for x, _ in task.val.batches(0, parts, device)])
    probabilities, labels = softmax(logits.numpy()), task.val.labels.numpy()
    return float(np.mean([auroc(probabilities[:, k], labels == k).value for k in np.unique(labels)]))


def _choose(whole: Path, part: Path, *, images: int, seed: int, all_validation: bool) -> None:
    """Write a table of about so many training images, of whole lesions, and of validation images."""
    table = read_table(whole / "images.parquet")
    train, val = (table[table["split"] == split] for split in ("train", "val"))
    folds = round(len(train) / images)
    if folds > 1:
        train = _fold(train, folds, seed)
        val = val if all_validation else _fold(val, folds, seed)
    part.mkdir(parents=True, exist_ok=True)
    write_table(pd.concat([train, val]), part / "images.parquet")
    for shard in whole.glob("*.tar"):
        (part / shard.name).unlink(missing_ok=True)
        (part / shard.name).symlink_to(shard.absolute())


def _fold(rows: pd.DataFrame, folds: int, seed: int) -> pd.DataFrame:
    return rows[assign_folds(rows["label"].tolist(), rows["group_id"].tolist(), folds=folds, seed=seed) == 0]


def report(
    setting: Setting, theirs: Curve, ours: Sequence[Curve], others: Mapping[str, float] | None = None
) -> None:
    """Print the curves and the ratios of their seconds, and draw them.

    Args:
        setting: what was the same.
        theirs: the other side.
        ours: the first is what the last line is about.
        others: what else of ours took how many seconds.
    """
    table = read_table(setting.images / "images.parquet")
    counts = table["split"].value_counts()
    backbone = setting.params.backbone
    print(
        f"{counts['train']} training and {counts['val']} validation images, {setting.recipe.epochs} epochs,"
        f" {backbone.name} cut {backbone.cut} at {backbone.input_size} px,"
        f" batches of {setting.recipe.batch_size}"
    )
    curves = [theirs, *ours]
    print(
        f"{'':34}{'seconds':>9}{'best AUROC':>12}   seconds until AUROC "
        + "".join(f"{x:>8.2f}" for x in LEVELS)
    )
    for curve in curves:
        reached = (curve.until(level) for level in LEVELS)
        cells = "".join(f"{'-' if at is None else f'{at:.0f}':>8}" for at in reached)
        print(f"{curve.name:34}{curve.total:9.0f}{max(curve.areas):12.4f}{'':23}{cells}")
    if setting.plot:
        write_figure(_draw(curves), setting.plot)
    for name, seconds in (others or {}).items():
        print(f"{name}: {theirs.total / seconds:.1f} times")
    print(f"ratio: {theirs.total / ours[0].total:.1f}")


def _draw(curves: list[Curve]) -> Figure:
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for curve, color in zip(curves, (VERMILION, BLUE, GREEN, "black"), strict=False):
        axes.plot(
            np.array(curve.seconds), curve.areas, color=color, marker="o", markersize=3, label=curve.name
        )
    axes.set(xlabel="seconds, everything included", ylabel="validation AUROC, macro", xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return figure
