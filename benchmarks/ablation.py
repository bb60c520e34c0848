"""What each choice of the recipe buys: one changed at a time, measured on validation.

    python benchmarks/ablation.py [--images 2000] [--epochs 6] [--cut 5] [--views 4]

A third of HAM10000's training lesions and half of the epochs, as in a trial of `dermtune search`; with
`--images 1400`, a quarter, all of it takes 40 minutes on two cores. The figures are those of the epoch that
would be kept. The first rows are the recipe of params.yaml from three seeds: they differ by chance alone, and
so may any other row.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from side_by_side import Setting, read_setting

from dermtune.backbone import Tail
from dermtune.deployable import turn
from dermtune.shards import open_array, read_batches
from dermtune.task import Task
from dermtune.training import Examples, class_frequencies, measure_logits, predict_logits
from dermtune.trunk import make_runner

SEEDS = (1, 2, 3)
TEST_VIEWS = 8
RECIPES: Mapping[str, Mapping[str, float]] = {
    "the loss weighs images alike (class_balance 0)": {"class_balance": 0.0},
    "the loss weighs classes alike (class_balance 1)": {"class_balance": 1.0},
    "the most probable class is named (decision_balance 0)": {"decision_balance": 0.0},
    "no label smoothing": {"label_smoothing": 0.0},
    "one learning rate for all blocks (layer_decay 1)": {"layer_decay": 1.0},
    "no averaged weights (ema 0)": {"ema": 0.0},
    "no dropout": {"dropout": 0.0},
}
BACKBONES: Mapping[str, Mapping[str, int]] = {
    "one block fewer frozen (cut 4)": {"cut": 4},
    "one block more frozen (cut 6)": {"cut": 6},
    "input of 160 px": {"input_size": 160},
    "input of 288 px": {"input_size": 288},
}


def show(name: str, setting: Setting, task: Task, logits: NDArray[np.float64]) -> None:
    """Print a row of the table."""
    frequencies = class_frequencies(task.train.labels, len(task.classes))
    found = measure_logits(logits, task.val.labels.numpy(), frequencies, setting.recipe)
    area, accuracy = found["val_auroc"], found["val_balanced_accuracy"]
    Console().print(f"| {name} | {area:.4f} | {accuracy:.3f} |", soft_wrap=True, highlight=False)


def logits_of(setting: Setting, tail: Tail, val: Examples) -> NDArray[np.float64]:
    """Of the validation images, (N, K)."""
    return predict_logits(tail.to(setting.device), val, setting.device).double().numpy()


def turned(setting: Setting, task: Task, view: int) -> Examples:
    """The validation images, flipped or turned, through the trunk."""
    size, embed = setting.params.backbone.input_size, setting.params.embed
    run = make_runner(task.network.trunk, input_size=size, dtype=embed.dtype, device=setting.device)

    def turn_batch(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return np.ascontiguousarray(turn(images, view).permute(0, 2, 3, 1).numpy())

    stored = open_array(setting.views_folder / "val.npy")
    batches = (turn_batch(pixels) for pixels in read_batches(stored, embed.batch_size))
    return replace(task.val, views=[np.concatenate([*run(batches)])])


def main() -> None:
    """Print a table of one row a change, as Markdown."""
    setting = read_setting(__doc__, images=2000, epochs=6, cut=5, all_validation=True)
    views = setting.params.augment.views
    task = setting.activations(views)
    print("| validation | AUROC, macro | balanced accuracy |\n| --- | --- | --- |")
    tails = [setting.train(task, seed=seed) for seed in SEEDS]
    found = [logits_of(setting, tail, task.val) for tail in tails]
    for seed, logits in zip(SEEDS, found, strict=True):
        show(f"the recipe, seed {seed}", setting, task, logits)
    show(f"ensemble of these {len(SEEDS)}", setting, task, np.mean(found, axis=0))
    seen = [logits_of(setting, tails[0], turned(setting, task, view)) for view in range(TEST_VIEWS)]
    show(f"seed {SEEDS[0]}, {TEST_VIEWS} test views", setting, task, np.mean(seen, axis=0))
    for name, changes in RECIPES.items():
        params = setting.params
        recipe = params.finetune.model_copy(update=changes)
        changed = replace(setting, params=params.model_copy(update={"finetune": recipe}))
        show(name, changed, task, logits_of(changed, changed.train(task), task.val))
    fewer = replace(task, train=replace(task.train, views=task.train.views[:1]))
    show("one view of each image", setting, fewer, logits_of(setting, setting.train(fewer), task.val))
    for name, values in BACKBONES.items():
        backbone = setting.params.backbone.model_copy(update=values)
        work = setting.work / "-".join(f"{key}-{value}" for key, value in values.items())
        changed = replace(setting, params=setting.params.model_copy(update={"backbone": backbone}), work=work)
        other = changed.activations(views)
        show(name, changed, other, logits_of(changed, changed.train(other), other.val))


if __name__ == "__main__":
    main()
