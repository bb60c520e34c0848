"""Is one model better than another? Both look at the same lesions; their difference is what is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermtune.errors import DataError
from dermtune.inference import look_at_images
from dermtune.metrics import Predictions, Sampled, measure
from dermtune.shards import PackedImages, places
from dermtune.table import read_table, table_sha256
from dermtune_bundle.bundle import Bundle
from dermtune_bundle.manifest import OperatingPoint


@dataclass(frozen=True)
class Difference:
    """Of one metric: the second model's value less the first one's, with its 95% interval."""

    metric: str
    first: float | None
    second: float | None
    value: float | None
    low: float | None
    high: float | None

    def sentence(self) -> str:
        """What it says, for people."""
        if self.value is None or self.low is None or self.high is None:
            return f"{self.metric}: undefined on these images."
        shown = f"{self.first:.3f} and {self.second:.3f}, a difference of {self.value:+.3f}"
        span = f"95% interval {self.low:+.3f} to {self.high:+.3f}"
        if self.low <= 0 <= self.high:
            verdict = "these images cannot tell the models apart"
        else:
            verdict = f"the {'second' if self.value > 0 else 'first'} model is better, by more than chance"
        return f"{self.metric}: {shown} ({span}): {verdict}."


def compare(
    first: tuple[Predictions, Sequence[OperatingPoint]],
    second: tuple[Predictions, Sequence[OperatingPoint]],
    *,
    draws: int,
    seed: int,
) -> list[Difference]:
    """Paired bootstrap over lesions of the metrics that both models have; higher is better in all of them.

    Args:
        first: a model's predictions of N images and its operating points.
        second: another's, of the same images in the same order.
        draws: how many draws of lesions, the same for both.
        seed: where they come from.

    Raises:
        ValueError: they are of other images.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8.
    """
    same = (first[0].lesions, second[0].lesions), (first[0].labels, second[0].labels)
    if first[0].classes != second[0].classes or not all(np.array_equal(*pair) for pair in same):
        raise ValueError("both must be of the same images, in one order, and of the same classes")
    measured = [
        measure(predictions, points, draws=draws, rng=np.random.default_rng(seed))
        for predictions, points in (first, second)
    ]
    points = [point.name for point in first[1] if point.name in {other.name for other in second[1]}]
    keys: dict[str, tuple[str, ...]] = {
        "AUROC, macro": ("auroc", "macro"),
        "AUROC, malignant": ("auroc", "malignant"),
        "Balanced accuracy": ("balanced_accuracy",),
        "Average precision, macro": ("average_precision", "macro"),
        "Partial AUROC above 80% sensitivity, malignant": ("partial_auroc", "malignant"),
    }
    keys |= {f"Sensitivity, {name}": ("sensitivity", name) for name in points}
    keys |= {f"Specificity, {name}": ("specificity", name) for name in points}
    return [
        _difference(metric, *(one[key] for one in measured))
        for metric, key in keys.items()
        if all(key in one for one in measured)
    ]


def compare_bundles(first: Path, second: Path, *, images: Path, draws: int, seed: int) -> list[Difference]:
    """`compare` of two bundles on the test images that neither was trained on.

    Raises:
        BundleError: a bundle is damaged.
        DataError: a bundle was trained on another image table: our test images may be its training images.
    """
    sha256 = table_sha256(images)
    test = read_table(images / "images.parquet", split="test")
    packed, found = PackedImages(images), places(test)
    both = []
    for folder in (first, second):
        bundle = Bundle.open(folder, threads=1)
        if bundle.manifest.lineage.get("images_sha256") != sha256:
            raise DataError(f"{folder}: trained on another image table than that of {images}")
        classes = tuple(known.name for known in bundle.manifest.classes)
        seen = look_at_images(bundle.graph, packed, found, description=folder.name)
        predictions = Predictions(
            classes,
            seen.probabilities,
            np.array([classes.index(label) for label in test["label"]], dtype=np.int64),
            bundle.manifest.named(seen.probabilities),
            test["lesion_id"].to_numpy(dtype=object),
            tuple(known.malignant for known in bundle.manifest.classes),
        )
        both.append((predictions, bundle.manifest.operating_points))
    return compare(*both, draws=draws, seed=seed)


def _difference(metric: str, first: Sampled, second: Sampled) -> Difference:
    if first.value is None or second.value is None:
        return Difference(metric, first.value, second.value, None, None, None)
    low, high = np.nanpercentile(second.draws - first.draws, [2.5, 97.5])
    return Difference(metric, first.value, second.value, second.value - first.value, float(low), float(high))
