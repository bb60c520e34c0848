"""Images of one split and one size in memory, as studies want them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.duplicates import turn
from dermtune.progress import progress
from dermtune.shards import PackedImages, places
from dermtune.table import classes_of, read_table
from dermtune.training import Activations
from dermtune.trunk import Runner
from dermtune_bundle.decode import resize

_BATCH = 64


@dataclass(frozen=True)
class Images:
    """Images with their rows of the image table."""

    pixels: NDArray[np.uint8]
    """(N, S, S, 3)."""
    labels: NDArray[np.int64]
    """(N,) places among `classes`."""
    table: pd.DataFrame
    """N rows of the image table, numbered from 0."""
    classes: tuple[str, ...]
    """K names, as the model's logits have them."""

    @property
    def lesions(self) -> NDArray[np.object_]:
        """(N,) lesion of each image."""
        return self.table["lesion_id"].to_numpy(object)

    @property
    def lesion_count(self) -> int:
        """How many lesions they show."""
        return self.table["lesion_id"].nunique()

    def only(self, rows: NDArray[np.integer]) -> "Images":
        """Some of the images, in the order of `rows` (M,)."""
        table = self.table.iloc[rows].reset_index(drop=True)
        return Images(self.pixels[rows], self.labels[rows], table, self.classes)


def read_images(
    folder: Path,
    split: Literal["train", "val"],
    size: int,
    *,
    most: int | None = None,
    balanced: bool = True,
    seed: int = 0,
) -> Images:
    """Read the images of a split; a study does not see the test split.

    Args:
        folder: what ingest wrote.
        split: which.
        size: side that they are resized to, in pixels.
        most: at most that many images.
        balanced: are they drawn so that every class is as often there as it can be, or as they come?
        seed: draws them.

    Raises:
        DataError: the images are missing or damaged.
    """
    path = folder / "images.parquet"
    classes, table = classes_of(read_table(path, split="train")), read_table(path, split=split)
    labels = np.array([classes.index(label) for label in table["label"]], np.int64)
    if most is not None:
        rows = balanced_rows(labels if balanced else np.zeros_like(labels), most, seed=seed)
        table, labels = table.iloc[rows].reset_index(drop=True), labels[rows]
    packed = PackedImages(folder)
    small = (resize(packed.decode(place), size) for place in places(table))
    pixels = np.stack([*progress(small, f"{split} images", len(table))])
    return Images(pixels, labels, table, tuple(classes))


def see_turned(run: Runner, pixels: NDArray[np.uint8], symmetry: int) -> Activations:
    """What a trunk makes of images (N, S, S, 3) in one of the eight flips and turns: (N, C, h, w)."""
    turned = turn(pixels, symmetry)
    tops = range(0, len(turned), _BATCH)
    return np.concatenate([*run(np.ascontiguousarray(turned[top : top + _BATCH]) for top in tops)])


def balanced_rows(labels: NDArray[np.int64], most: int, *, seed: int) -> NDArray[np.intp]:
    """Rows of at most some images, rising, the classes as equally often as they can be.

    Args:
        labels: (N,) class of each image.
        most: how many rows at most.
        seed: draws them.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    # the first of each class come first, then the second of each
    turns = pd.Series(labels[shuffled]).groupby(labels[shuffled]).cumcount().to_numpy()
    return np.sort(shuffled[np.argsort(turns, kind="stable")[:most]])
