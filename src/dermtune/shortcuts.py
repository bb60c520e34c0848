"""Does the model look at the lesion, or at rulers, ink, hair and dark corners beside it?

The lesion is painted over with the colour of the skin, and then all but the lesion: what a model that judges
lesions can still tell in the first case, it tells by something else.

Source: Bissoto et al., (De)Constructing Bias on Skin Lesion Datasets, CVPR workshops 2019.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.appearance import Mask, grow
from dermtune.metrics import Predictions, auroc, estimate, macro, recall, resample

Image = NDArray[np.uint8]
_MARGIN = 0.04  # of the shorter side: a lesion's border says as much as the lesion


def lesion_painted_over(image: Image, lesion: Mask) -> Image:
    """The image with the median colour of the rest where the lesion (H, W) is, uint8 (H, W, 3)."""
    mask = grow(lesion, _MARGIN)
    return _paint(image, mask, of=~mask)


def lesion_alone(image: Image, lesion: Mask) -> Image:
    """The image with the median colour of the skin wherever the lesion (H, W) is not, uint8 (H, W, 3)."""
    mask = grow(lesion, _MARGIN)
    return _paint(image, ~mask, of=~mask)


VARIANTS: Mapping[str, Callable[[Image, Mask], Image]] = {
    "lesion painted over": lesion_painted_over,
    "lesion alone": lesion_alone,
}


def measure_shortcuts(
    variants: Mapping[str, Predictions], *, draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Macro AUROC and balanced accuracy of each variant of the same images.

    Args:
        variants: predictions by what was done to the images.
        draws: how many draws of lesions stand behind each interval.
        rng: where they come from.

    Returns:
        `variant, auroc, auroc_low, auroc_high, balanced_accuracy, balanced_accuracy_low, …_high`.
    """
    rows = []
    for name, predictions in variants.items():
        metrics = {("auroc", label): auroc(*predictions.of(label)) for label in predictions.classes}
        metrics |= {
            ("recall", label): recall(predictions.named, predictions.labels, column)
            for column, label in enumerate(predictions.classes)
        }
        sampled = resample(metrics, predictions.drawn, draws=draws, rng=rng)
        row: dict[str, object] = {"variant": name}
        for metric, part in (("auroc", "auroc"), ("balanced_accuracy", "recall")):
            found = estimate(macro([sampled[part, label] for label in predictions.classes]))
            row |= {metric: found.value, f"{metric}_low": found.low, f"{metric}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def activation_inside(activation: NDArray[np.floating], lesion: Mask) -> float:
    """Share of a class's positive activation that lies in the lesion; NaN where there is none.

    Args:
        activation: (h, w) of one class, as the graph gives it.
        lesion: (H, W) where it is.
    """
    mask = lesion.astype(np.float64)
    height, width = activation.shape
    rows = np.array_split(np.arange(mask.shape[0]), height)
    columns = np.array_split(np.arange(mask.shape[1]), width)
    inside = np.array([[mask[np.ix_(row, column)].mean() for column in columns] for row in rows])
    positive = np.maximum(activation, 0).astype(np.float64)
    total = float(positive.sum())
    return float((positive * inside).sum()) / total if total else float("nan")


def _paint(image: Image, where: NDArray[np.bool_], *, of: NDArray[np.bool_]) -> Image:
    painted = image.copy()
    color = np.median(image[of] if of.any() else image.reshape(-1, 3), axis=0)
    painted[where] = color.astype(np.uint8)
    return painted
