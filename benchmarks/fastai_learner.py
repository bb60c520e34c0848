"""dermtune against fastai's `vision_learner(...).fine_tune(...)`.

    uv pip install --python .venv/bin/python -r benchmarks/fastai.txt
    python benchmarks/fastai_learner.py [--images 300] [--epochs 20] [--cut 6] [--views 4] [--plot curve.png]

fastai's side is its own idiom: ImageBlock from the original files, `aug_transforms`, its head, its one-cycle
`fine_tune` with one frozen epoch. The body is the same backbone with the same weights; what dermtune freezes
is frozen and left out of the optimizer, so that `unfreeze` trains the same blocks. dermtune's time includes
augmenting and embedding.
"""

import os
from pathlib import Path

import numpy as np
import timm
import torch
from side_by_side import HAM10000, Curve, Setting, read_setting, report
from torch import nn

try:
    from fastai.callback.core import Callback
    from fastai.data.all import CategoryBlock, ColReader, ColSplitter, DataBlock
    from fastai.vision.all import (
        ImageBlock,
        Normalize,
        Resize,
        ResizeMethod,
        aug_transforms,
        params,
        vision_learner,
    )
except ImportError as error:
    raise SystemExit(
        "this benchmark needs fastai: uv pip install --python .venv/bin/python -r benchmarks/fastai.txt"
    ) from error

from dermtune.calibration import softmax
from dermtune.metrics import auroc
from dermtune.table import read_table


class TimeAUROC(Callback):
    """After each epoch, the validation AUROC and the time."""

    order = 1000

    def __init__(self, curve: Curve) -> None:
        super().__init__()
        self.curve = curve

    def before_validate(self) -> None:
        """Start anew."""
        self.found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def after_pred(self) -> None:
        """Keep what validation says."""
        if not self.training:
            self.found.append((self.pred.detach(), self.y.detach()))

    def after_validate(self) -> None:
        """Measure it."""
        probabilities = softmax(torch.cat([pred for pred, _ in self.found]).numpy())
        labels = torch.cat([y for _, y in self.found]).numpy()
        areas = [auroc(probabilities[:, k], labels == k).value for k in np.unique(labels)]
        self.curve.add(float(np.mean(areas)))


def with_fastai(setting: Setting, root: Path) -> Curve:
    """Train as fastai's documentation does."""
    curve = Curve("fastai's vision_learner")
    size, network = setting.params.backbone.input_size, setting.network()
    table = read_table(setting.images / "images.parquet")
    table = table.assign(is_valid=table["split"] == "val")
    augment = setting.params.augment
    normal = timm.get_pretrained_cfg(setting.params.backbone.name).to_dict()
    varied = aug_transforms(
        flip_vert=True,
        max_rotate=augment.rotate,
        max_lighting=augment.color,
        size=size,
        min_scale=augment.min_scale,
    )
    loaders = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("path", pref=f"{root}/"),
        get_y=ColReader("label"),
        splitter=ColSplitter(),
        item_tfms=Resize(size, method=ResizeMethod.Squish),
        batch_tfms=[*varied, Normalize.from_stats(normal["mean"], normal["std"], cuda=False)],
    ).dataloaders(table, bs=setting.recipe.batch_size, num_workers=os.cpu_count() or 1)

    def body(*, pretrained: bool) -> nn.Module:  # noqa: ARG001 (it is, already)
        return nn.Sequential(network.trunk.units, nn.Sequential(*network.tail_units))

    learner = vision_learner(
        loaders,
        body,
        pretrained=True,
        normalize=False,
        cut=lambda model: model,
        n_out=loaders.c,
        splitter=lambda model: [params(model[0][1]), params(model[1])],
        cbs=TimeAUROC(curve),
    )
    network.trunk.units.requires_grad_(requires_grad=False)
    learner.fine_tune(setting.recipe.epochs - 1, base_lr=setting.recipe.lr, freeze_epochs=1)
    return curve


def main() -> None:
    """Time both sides on the same images, in one process, one after the other."""
    setting = read_setting(__doc__, images=300)
    if not HAM10000.is_dir():
        raise SystemExit(
            f"this benchmark reads the original files of HAM10000 at {HAM10000}, which is not there"
        )
    views = setting.params.augment.views
    ours = Curve(f"dermtune, {views} views")
    setting.train(setting.activations(views), ours)
    report(setting, with_fastai(setting, HAM10000.absolute()), [ours])


if __name__ == "__main__":
    main()
