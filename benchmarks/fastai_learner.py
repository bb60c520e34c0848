"""dermtune against fastai's `vision_learner(...).fine_tune(...)`.

    uv pip install --python .venv/bin/python --require-hashes -r benchmarks/fastai.txt
    python benchmarks/fastai_learner.py [--images 300] [--epochs 20] [--cut 6] [--views 4] [--plot curve.png]

fastai's side is its own idiom: ImageBlock from the original files, `aug_transforms`, its head, its one-cycle
`fine_tune` with one frozen epoch. The body is the same backbone with the same weights; what dermtune freezes
is frozen and left out of the optimizer, so that `unfreeze` trains the same blocks. dermtune's time includes
augmenting and embedding.
"""

import os
from pathlib import Path

import timm
from side_by_side import HAM10000, Curve, Setting, read_setting, report, validation_auroc
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
        "this benchmark needs fastai:"
        " uv pip install --python .venv/bin/python --require-hashes -r benchmarks/fastai.txt"
    ) from error

from dermtune.task import Task


class TimeAUROC(Callback):
    """After each epoch, the AUROC on the stored activations of validation, and the time."""

    def __init__(self, curve: Curve, task: Task, device: str) -> None:
        super().__init__()
        self.curve, self.task, self.device = curve, task, device

    def after_epoch(self) -> None:
        """Measure."""
        body, head = self.learn.model
        self.curve.add(validation_auroc(nn.Sequential(body[1], head), self.task, self.device))


class Frozen(nn.Sequential):
    """Frozen means frozen: batch norms keep their statistics when fastai starts training."""

    def train(self, mode: bool = True) -> "Frozen":  # noqa: ARG002, FBT001, FBT002 (nn.Module's signature)
        """Stay in eval mode."""
        return super().train(mode=False)


def with_fastai(setting: Setting, task: Task, root: Path) -> Curve:
    """Train as fastai's documentation does."""
    curve = Curve("fastai's vision_learner")
    size, network = setting.params.backbone.input_size, setting.network()
    table = task.train_table.assign(is_valid=False)
    table.loc[table.groupby("label").head(1).index, "is_valid"] = True  # fastai wants some; they are few
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
        pooling = nn.AdaptiveAvgPool2d(1)  # fastai cuts the network here, whatever its argument `cut` says
        return nn.Sequential(Frozen(network.trunk.units), nn.Sequential(*network.tail_units), pooling)

    learner = vision_learner(
        loaders,
        body,
        pretrained=True,
        normalize=False,
        n_out=loaders.c,
        splitter=lambda model: [params(model[0][1]), params(model[1])],
        cbs=TimeAUROC(curve, task, setting.device),
    )
    network.trunk.units.requires_grad_(requires_grad=False)
    learner.no_bar()
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
    task = setting.activations(views)
    setting.train(task, curve=ours)
    report(setting, with_fastai(setting, task, HAM10000.absolute()), [ours])


if __name__ == "__main__":
    main()
