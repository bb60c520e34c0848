"""dermtune against a conventional loop: DataLoader, albumentations, and the frozen layers at every step.

    python benchmarks/conventional.py [--images 600] [--epochs 20] [--cut 6] [--views 4] [--plot curve.png]

Both sides train with the very same code (`train_tail`: optimizer, learning rates, loss, averaging,
validation); they differ in where a batch comes from. The conventional side decodes, augments and runs the
frozen layers anew, in torch (channels last, no gradients), with a worker process a core. dermtune's time
includes augmenting and embedding. The last ratio is that of the chosen number of views; above it are the
strict case, where every epoch sees fresh views, and a further training on the same activations.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from side_by_side import Curve, Setting, read_setting, report
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dermtune.augmentation import Variation, make_views
from dermtune.backbone import Trunk
from dermtune.shards import PackedImages, Place, places
from dermtune.task import Task
from dermtune.training import Examples, train_tail


@dataclass(frozen=True)
class Images(Dataset[tuple[Tensor, int]]):
    """Decoded from the original files and augmented, one at a time."""

    packed: PackedImages
    places: list[Place]
    labels: list[int]
    size: int
    variation: Variation
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place = self.places[index]
        image, key = self.packed.decode(place), f"{place.image_id}-{self.epoch}"
        view = make_views(image, self.variation, views=1, image_id=key, size=self.size, seed=1)[0]
        return torch.from_numpy(view), self.labels[index]


@dataclass(frozen=True, kw_only=True)
class Recomputed(Examples):
    """As dermtune's examples, but every batch is made anew."""

    dataset: Images
    trunk: Trunk

    def resident(self, device: str) -> "Recomputed":  # noqa: ARG002 (there is nothing to keep)
        """Unchanged."""
        return self

    def batches(self, epoch: int, parts: Iterable[Tensor], device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Each part of the images, through DataLoader and the frozen layers."""
        dataset = Images(**vars(self.dataset) | {"epoch": epoch})
        loader = DataLoader(
            dataset, batch_sampler=[part.tolist() for part in parts], num_workers=os.cpu_count() or 1
        )
        for views, labels in loader:
            pixels = (
                views.to(device).permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)
            )
            half = torch.device(device).type == "cuda"
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=half):
                activations = self.trunk(pixels)
            yield activations.float(), labels.to(device)


def conventional(setting: Setting, task: Task) -> Curve:
    """Train the conventional way; of dermtune's task, only the validation images are used."""
    curve = Curve("conventional loop")
    network, augment = setting.network(), setting.params.augment
    labels = task.train.labels.tolist()
    dataset = Images(
        PackedImages(setting.images),
        places(task.train_table),
        labels,
        setting.params.backbone.input_size,
        Variation(augment.min_scale, augment.color, augment.hue, augment.rotate),
    )
    trunk = network.trunk.to(setting.device).to(memory_format=torch.channels_last)
    train_tail(
        network.tail(len(task.classes), dropout=setting.recipe.dropout, seed=1),
        Recomputed([], task.train.labels, dataset=dataset, trunk=trunk),
        task.val,
        setting.recipe,
        seed=1,
        device=setting.device,
        on_epoch=curve.on_epoch,
    )
    return curve


def dermtune(setting: Setting, views: int) -> tuple[Curve, float, Task]:
    """Train dermtune's way, everything included; also the seconds of the training alone, and the task."""
    curve = Curve(f"dermtune, {views} views")
    task = setting.activations(views)
    ready = Curve("")
    setting.train(task, curve=curve)
    return curve, curve.total - (ready.began - curve.began), task


def main() -> None:
    """Time both sides on the same images, in one process, one after the other."""
    setting = read_setting(__doc__, images=600)
    views, epochs = setting.params.augment.views, setting.recipe.epochs
    ours, further, task = dermtune(setting, views)
    strict, _, _ = dermtune(setting, epochs)
    theirs = conventional(setting, task)
    fresh = f"strict, {epochs} views: a fresh one each epoch"
    again = "each further training on the same activations"
    report(setting, theirs, [ours, strict], {fresh: strict.total, again: further})


if __name__ == "__main__":
    main()
