"""Fine-tuning on stored activations against the same steps on a random batch that is already in memory.

    python benchmarks/finetuning.py [--cut CUT] [--images 1500] [--views 2]

Both sides run `train_tail`, in turns, in one process: optimizer, averaging and all. A ratio of 1 means that
shuffled reading from memory-mapped files costs nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dermtune.backbone import load_backbone
from dermtune.params import read_params
from dermtune.shards import create_array, open_array
from dermtune.training import EpochRecord, Examples, train_tail
from dermtune.trunk import resolve_device

CLASSES, EPOCHS = 7, 4


@dataclass(frozen=True)
class Resident(Examples):
    """The same batch for every step, on the device already."""

    def batches(self, epoch: int, parts: Iterable[Tensor], device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch, again and again."""
        parts = list(parts)
        batch = self.batch(epoch, parts[0], device)
        return (batch for _ in parts)


def main() -> None:
    """Print images per second of both, and their ratio."""
    params = read_params(Path("params.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cut", type=int, default=params.backbone.cut)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--views", type=int, default=2)
    chosen = parser.parse_args()
    backbone = params.backbone.model_copy(update={"cut": chosen.cut})
    recipe = params.finetune.model_copy(update={"epochs": EPOCHS, "patience": EPOCHS, "head_epochs": 0})
    device = resolve_device(recipe.device, key="finetune.device")
    network = load_backbone(backbone)
    size = backbone.input_size
    with torch.inference_mode():
        shape = network.trunk(torch.zeros(1, 3, size, size)).shape[1:]
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(CLASSES, size=chosen.images))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"train-{view:02d}.npy") for view in range(chosen.views)]
        for path in paths:
            with create_array(path, (chosen.images, *shape), "float16") as array:
                for _ in range(chosen.images):
                    array.append(rng.normal(size=(1, *shape)).astype(np.float16))
        views = [open_array(path) for path in paths]
        val = Examples(views, labels).only(torch.arange(2 * CLASSES))
        sides = {"resident batch": Resident(views, labels), "stored activations": Examples(views, labels)}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(3):
            for name, train in sides.items():
                ends: list[float] = []

                def note(_: EpochRecord, ends: list[float] = ends) -> None:
                    ends.append(time.perf_counter())

                tail = network.tail(CLASSES, dropout=recipe.dropout, seed=1)
                train_tail(tail, train.resident(device), val, recipe, seed=1, device=device, on_epoch=note)
                if turn:  # the first warms up; so does each training's first epoch
                    seconds[name] += list(np.diff(ends))
    print(f"cut {chosen.cut}, {chosen.images} images, batches of {recipe.batch_size}, {device}")
    rates = {name: chosen.images / statistics.median(taken) for name, taken in seconds.items()}
    for name, rate in rates.items():
        print(f"  {name}: {rate:.0f} images/s")
    resident, stored = rates.values()
    print(f"ratio: {stored / resident:.3f}")


if __name__ == "__main__":
    main()
