"""dermtune against timm's own training utilities, with the same modules frozen.

    python benchmarks/timm_utilities.py [--images 300] [--epochs 20] [--cut 6] [--views 4] [--plot curve.png]

timm's side is as its train.py puts it together: create_loader with its own random-resized-crop pipeline,
create_optimizer_v2, create_scheduler_v2, LabelSmoothingCrossEntropy and ModelEmaV3; the frozen modules run
without gradients. Its channels are laid out last, as is fastest here. dermtune's time includes augmenting
and embedding.
"""

import os

import timm
import torch
from PIL import Image
from side_by_side import Curve, Setting, read_setting, report, validation_auroc
from timm.data import create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

from dermtune.shards import PackedImages, Place, places
from dermtune.task import Task


class Images(torch.utils.data.Dataset):
    """Pillow images; timm's loader sets the transform."""

    transform = None

    def __init__(self, packed: PackedImages, places: list[Place], labels: list[int]) -> None:
        self.packed, self.places, self.labels = packed, places, labels

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.packed.decode(self.places[index]))
        return self.transform(image), self.labels[index]


def with_timm(setting: Setting, task: Task) -> Curve:
    """Train as timm's train.py does."""
    curve = Curve("timm's utilities")
    recipe, size = setting.recipe, setting.params.backbone.input_size
    names, device = task.classes, torch.device(setting.device)
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
        "device": device,
    }
    augment = {
        "scale": (setting.params.augment.min_scale, 1),
        "hflip": 0.5,
        "vflip": 0.5,
        "color_jitter": 0.15,
    }
    train = create_loader(
        Images(PackedImages(setting.images), places(task.train_table), task.train.labels.tolist()),
        is_training=True,
        **augment,
        **common,
    )
    # timm's loader normalises, so that dermtune's trunk must not do so again
    trunk = network.trunk.units
    trunk = trunk.to(device).to(memory_format=torch.channels_last)
    tail = tail.to(device).to(memory_format=torch.channels_last)
    averaged = ModelEmaV3(tail, decay=recipe.ema, use_warmup=True)
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
                activations = trunk(images.to(device).contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad()
            loss_of(tail(activations), labels.to(device)).backward()
            optimizer.step()
            averaged.update(tail)
        scheduler.step(epoch + 1)
        curve.add(validation_auroc(averaged.module, task, setting.device))
    return curve


def main() -> None:
    """Time both sides on the same images, in one process, one after the other."""
    setting = read_setting(__doc__, images=300)
    views = setting.params.augment.views
    ours = Curve(f"dermtune, {views} views")
    task = setting.activations(views)
    setting.train(task, curve=ours)
    report(setting, with_timm(setting, task), [ours])


if __name__ == "__main__":
    main()
