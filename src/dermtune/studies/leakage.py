"""What a leak would have bought: the same training with test lesions among the training images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dermtune.augmentation import Variation, make_views
from dermtune.calibration import decision_weights, prior_shift, softmax
from dermtune.compare import Difference, compare
from dermtune.csv_tables import write_tables
from dermtune.labels import lesion_class
from dermtune.metrics import Predictions
from dermtune.recipe import FinetuneConfig
from dermtune.shards import PackedImages, places
from dermtune.table import read_table
from dermtune.task import Task, read_task
from dermtune.training import Activations, Examples, class_frequencies, predict_logits, train_tail
from dermtune.trunk import Runner, make_runner
from dermtune_bundle.decode import resize

if TYPE_CHECKING:
    from dermtune.params import Params


@dataclass(frozen=True)
class _Stacked:
    """Two arrays of activations, one below the other, without a copy."""

    upper: Activations
    lower: Activations

    def __getitem__(self, rows: NDArray[np.int64]) -> Activations:
        found = np.empty((len(rows), *self.upper.shape[1:]), self.upper.dtype)
        above = rows < len(self.upper)
        found[above] = self.upper[rows[above]]
        found[~above] = self.lower[rows[~above] - len(self.upper)]
        return found


def embed_leaked(
    table: pd.DataFrame,
    packed: PackedImages,
    run: Runner,
    *,
    classes: Sequence[str],
    views: int,
    variation: Variation,
    size: int,
    seed: int,
    batch_size: int,
) -> tuple[Examples, Examples]:
    """Activations of the test images: augmented, as training would see them, and as they are.

    Args:
        table: the test images' rows of the image table.
        packed: where they lie.
        run: the trunk, as `make_runner` gives it.
        classes: K names.
        views: of each image.
        variation: how they are varied.
        size: side of a view, in pixels.
        seed: of the variation.
        batch_size: images that go through the trunk at once.
    """
    found = places(table)

    def embed(pixels: NDArray[np.uint8]) -> Activations:
        batches = (pixels[start : start + batch_size] for start in range(0, len(pixels), batch_size))
        return np.concatenate([*run(batches)])

    images = [packed.decode(place) for place in found]
    varied = np.stack(
        [
            make_views(image, variation, views=views, image_id=place.image_id, size=size, seed=seed)
            for image, place in zip(images, found, strict=True)
        ]
    )
    labels = torch.tensor([classes.index(label) for label in table["label"]])
    leaked = Examples([embed(np.ascontiguousarray(varied[:, view])) for view in range(views)], labels)
    return leaked, Examples([embed(np.stack([resize(image, size) for image in images]))], labels)


def study_leakage(
    task: Task,
    leaked: Examples,
    test: Examples,
    test_table: pd.DataFrame,
    recipe: FinetuneConfig,
    *,
    shares: Sequence[float],
    draws: int,
    seed: int,
) -> dict[float, list[Difference]]:
    """Train with more and more of the test lesions in the place of training images, on the CPU.

    As many training images of the same classes leave as leak in, so that neither the number of images nor the
    frequencies of the classes change. Each share is one training: what seeds change is in the difference too.

    Args:
        task: the training images.
        leaked: the test images as training would see them, as many views as those have.
        test: the test images as they are.
        test_table: their rows of the image table.
        recipe: of the training.
        shares: of the test lesions that leak; a larger share holds the lesions of a smaller one.
        draws: of the bootstrap.
        seed: of the training, the lesions that leak and the bootstrap.

    Returns:
        By share, each metric without the leak, with it, and their difference with its interval.
    """
    lesions = test_table["lesion_id"].to_numpy(dtype=object)
    order = np.random.default_rng(seed).permutation(np.unique(lesions))
    count = len(task.train.labels)
    pairs = zip(task.train.views, leaked.views, strict=True)
    views: list[Any] = [_Stacked(np.asanyarray(one), np.asanyarray(other)) for one, other in pairs]
    labels = torch.cat([task.train.labels, leaked.labels])

    def predictions(share: float) -> Predictions:
        chosen = np.isin(lesions, order[: round(share * len(order))])
        stay = np.setdiff1d(np.arange(count), _to_leave(task, test.labels[torch.from_numpy(chosen)], seed))
        rows = torch.from_numpy(np.concatenate([stay, count + np.flatnonzero(chosen)]))
        train = replace(task.train, views=views, labels=labels[rows], rows=rows)
        tail, _ = train_tail(
            task.network.tail(len(task.classes), dropout=recipe.dropout, seed=seed),
            train,
            task.val,
            recipe,
            seed=seed,
            device="cpu",
            description=f"{share:.0%} leaked, ",
        )
        frequencies = class_frequencies(train.labels, len(task.classes))
        logits = predict_logits(tail, test, "cpu").double().numpy()
        probabilities = softmax(logits + prior_shift(frequencies, recipe.class_balance))
        named = (probabilities * decision_weights(frequencies, recipe.decision_balance)).argmax(1)
        malignant = tuple(lesion_class(name).malignant for name in task.classes)
        groups = test_table["group_id"].to_numpy(dtype=object)
        names = tuple(task.classes)
        return Predictions(names, probabilities, test.labels.numpy(), named, lesions, malignant, groups)

    clean = predictions(0.0)
    return {share: compare((clean, []), (predictions(share), []), draws=draws, seed=seed) for share in shares}


def _to_leave(task: Task, leaking: torch.Tensor, seed: int) -> NDArray[np.int64]:
    """Rows of as many training images of each class as leak in, or of all that there are but one."""
    rng = np.random.default_rng(seed)
    labels = task.train.labels.numpy()
    leave = []
    for column, count in enumerate(np.bincount(leaking.numpy(), minlength=len(task.classes))):
        own = rng.permutation(np.flatnonzero(labels == column))
        leave.append(own[: min(count, len(own) - 1)])
    return np.concatenate(leave).astype(np.int64)


def run_leakage_study(
    params: "Params", *, images: Path, activations: Path, shares: Sequence[float], out: Path
) -> dict[float, list[Difference]]:
    """`study_leakage` of what the stages wrote; writes leakage.csv.

    Raises:
        DataError: the activations are stale, foreign or missing.
    """
    task = read_task(images, activations, backbone=params.backbone, seed=params.seed)
    size, embed, augment = params.backbone.input_size, params.embed, params.augment
    table = read_table(images / "images.parquet", split="test")
    leaked, test = embed_leaked(
        table,
        PackedImages(images),
        make_runner(task.network.trunk, input_size=size, dtype=embed.dtype, device="cpu"),
        classes=task.classes,
        views=augment.views,
        variation=Variation(augment.min_scale, augment.color, augment.hue, augment.rotate),
        size=size,
        seed=params.seed,
        batch_size=embed.batch_size,
    )
    found = study_leakage(
        task,
        leaked,
        test,
        table,
        params.finetune.model_copy(update={"mitigation": "none"}),  # the leaked images have no groups here
        shares=shares,
        draws=params.evaluate.bootstrap,
        seed=params.seed,
    )
    rows = [{"share": share, **asdict(one)} for share, differences in found.items() for one in differences]
    write_tables({"leakage": pd.DataFrame(rows)}, out)
    return found
