"""dermtune against timm's own training utilities, with the same modules frozen.

    python benchmarks/timm_utilities.py [--images 300] [--epochs 20] [--cut 6] [--views 4] [--plot curve.png]

timm's side is as its train.py puts it together: create_loader with its own random-resized-crop pipeline,
create_optimizer_v2, create_scheduler_v2, LabelSmoothingCrossEntropy and ModelEmaV3; the frozen modules run
without gradients. Its channels are laid out last, as is fastest here. dermtune's time includes augmenting
and embedding.
"""

import os
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from side_by_side import Curve, Setting, read_setting, report
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from dermtune.calibration import softmax
from dermtune.metrics import auroc
from dermtune.shards import PackedImages, places
from dermtune.table import classes_of, read_table


class Images(torch.utils.data.Dataset):
    """Pillow images; timm's loader sets the transform."""

    transform = None

    def __init__(self, folder: Path, split: str, names: list[str]) -> None:
        table = read_table(folder / "images.parquet", split=split)
        self.packed, self.places = PackedImages(folder), places(table)
        self.labels = [names.index(label) for label in table["label"]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.packed.decode(self.places[index]))
        return self.transform(image), self.labels[index]


def with_timm(setting: Setting) -> Curve:
    """Train as timm's train.py does."""
    curve = Curve("timm's utilities")
    recipe, size = setting.recipe, setting.params.backbone.input_size
    names = classes_of(read_table(setting.images / "images.parquet", split="train"))
    network = setting.network()
    tail = network.tail(len(names), dropout=recipe.dropout, seed=1)
    config = timm.get_pretrained_cfg(setting.params.backbone.name).to_dict()
    common = {
        "input_size": (3, size, size),
        "batch_size": recipe.batch_size,
        "use_prefetcher": False,
        "mean": config["mean"],
        "std": config["std"],
        "num_workers": os.cpu_count() or 1,
        "device": torch.device("cpu"),
    }
    augment = {
        "scale": (setting.params.augment.min_scale, 1),
        "hflip": 0.5,
        "vflip": 0.5,
        "color_jitter": 0.15,
    }
    train = create_loader(Images(setting.images, "train", names), is_training=True, **augment, **common)
    val = create_loader(
        Images(setting.images, "val", names), is_training=False, crop_pct=1.0, crop_mode="squash", **common
    )
    # timm's loader normalises, so that dermtune's trunk must not do so again
    trunk = network.trunk.units
    model = nn.Sequential(trunk, tail).to(memory_format=torch.channels_last)
    averaged = ModelEmaV3(model, decay=recipe.ema, use_warmup=True)
    optimizer = create_optimizer_v2(tail, opt="adamw", lr=recipe.lr, weight_decay=recipe.weight_decay)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=recipe.epochs, warmup_epochs=1, warmup_lr=recipe.lr / 10
    )
    loss_of = LabelSmoothingCrossEntropy(recipe.label_smoothing)
    for epoch in range(epochs):
        tail.train()
        tail.units.requires_grad_(epoch >= recipe.head_epochs)
        for images, labels in train:
            with torch.no_grad():
                activations = trunk(images.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad()
            loss_of(tail(activations), labels).backward()
            optimizer.step()
            averaged.update(model)
        scheduler.step(epoch + 1)
        curve.add(_validate(averaged.module, val))
    return curve


def _validate(model: nn.Module, loader: torch.utils.data.DataLoader) -> float:
    model.eval()
    with torch.inference_mode():
        found = [
            (model(images.contiguous(memory_format=torch.channels_last)), labels) for images, labels in loader
        ]
    probabilities = softmax(torch.cat([logits for logits, _ in found]).numpy())
    labels = torch.cat([labels for _, labels in found]).numpy()
    return float(np.mean([auroc(probabilities[:, k], labels == k).value for k in np.unique(labels)]))


def main() -> None:
    """Time both sides on the same images, in one process, one after the other."""
    setting = read_setting(__doc__, images=300)
    views = setting.params.augment.views
    ours = Curve(f"dermtune, {views} views")
    setting.train(setting.activations(views), ours)
    report(setting, with_timm(setting), [ours])


if __name__ == "__main__":
    main()
