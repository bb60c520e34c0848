"""Is one model better than another? Both look at the same lesions; their difference is what is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import bdtr

from dermtune.errors import DataError
from dermtune.inference import look_at_images
from dermtune.leakage import require_no_leakage
from dermtune.metrics import LEAST_DRAWN, Predictions, Sampled, measure, predictions_of
from dermtune.shards import PackedImages, places
from dermtune.table import read_table, table_sha256
from dermtune_bundle.bundle import Bundle
from dermtune_bundle.manifest import OperatingPoint

_LEVEL = 0.05
_WORDS = {
    "sensitivity": ("the second model finds more", "the first model finds more"),
    "specificity": ("the second model gives fewer false alarms", "the first model gives fewer false alarms"),
}


@dataclass(frozen=True)
class Difference:
    """Of one metric: the second model's value less the first one's, with its 95% interval."""

    metric: str
    first: float | None
    second: float | None
    value: float | None
    low: float | None
    high: float | None
    words: tuple[str, str] = ("the second model is higher", "the first model is higher")
    """What it means if the second value, or the first, is the larger."""
    is_primary: bool = False
    """Is it the metric by which the models are judged? Of many, some differ by chance."""
    chance: float | None = None
    """Of a share: how probable so many lesions judged unlike are, were the models equally good."""

    def is_real(self) -> bool:
        """Is the difference more than chance? By its interval and, of a share, by the exact test as well."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return False
        return self.chance is None or self.chance < _LEVEL

    def sentence(self) -> str:
        """What it says, for people."""
        if self.first is None or self.second is None or self.value is None:
            return f"{self.metric}: undefined on these images."
        shown = f"{self.first:.3f} and {self.second:.3f}, a difference of {self.value:+.3f}"
        if self.low is None or self.high is None:
            return f"{self.metric}: {shown}; too few lesions to say more."
        span = f"95% interval {self.low:+.3f} to {self.high:+.3f}"
        if not self.is_real():
            verdict = "these images cannot tell the models apart"
        elif self.is_primary:
            verdict = f"the {'second' if self.value > 0 else 'first'} model is better, by more than chance"
        else:
            verdict = (
                f"{self.words[self.value < 0]}; of so many metrics, one in twenty would say so by chance"
            )
        return f"{self.metric}: {shown} ({span}): {verdict}."


def compare(
    first: tuple[Predictions, Sequence[OperatingPoint]],
    second: tuple[Predictions, Sequence[OperatingPoint]],
    *,
    draws: int,
    seed: int,
) -> list[Difference]:
    """Paired bootstrap over lesions of the metrics that both models have; they are judged by the first.

    A sensitivity says which model finds more at its own threshold, not which is better: what it finds more,
    it may pay for in false alarms.

    Args:
        first: a model's predictions of N images and its operating points.
        second: another's, of the same images in the same order.
        draws: how many draws of lesions, the same for both.
        seed: where they come from.

    Raises:
        ValueError: they are of other images.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8.
    """
    same = (first[0].drawn, second[0].drawn), (first[0].labels, second[0].labels)
    if first[0].classes != second[0].classes or not all(np.array_equal(*pair) for pair in same):
        raise ValueError("both must be of the same images, in one order, and of the same classes")
    measured = [
        measure(predictions, points, draws=draws, rng=np.random.default_rng(seed))
        for predictions, points in (first, second)
    ]
    pairs = [
        (one, two)
        for one in first[1]
        for two in second[1]
        if (one.name, one.target) == (two.name, two.target)
    ]
    keys: dict[str, tuple[str, ...]] = {
        "AUROC, malignant": ("auroc", "malignant"),
        "AUROC, macro": ("auroc", "macro"),
        "Balanced accuracy": ("balanced_accuracy",),
        "Average precision, macro": ("average_precision", "macro"),
        "Partial AUROC above 80% sensitivity, malignant": ("partial_auroc", "malignant"),
    }
    found = [
        difference(metric, *(one[key] for one in measured))
        for metric, key in keys.items()
        if all(key in one for one in measured)
    ]
    found[0] = replace(found[0], is_primary=True)
    for rate, words in _WORDS.items():
        for points in pairs:
            rated = difference(f"{rate.title()}, {points[0].name}", *(
                one[rate, point.name] for one, point in zip(measured, points, strict=True)
            ))  # fmt: skip
            chance = _chance(rate, (first[0], points[0]), (second[0], points[1]))
            found.append(replace(rated, words=words, chance=chance))
    return found


def _chance(rate: str, *models: tuple[Predictions, OperatingPoint]) -> float | None:
    """Exact McNemar test of the lesions that the models judge unlike, in their larger part.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    unlike = np.zeros(len(models[0][0].labels))
    for sign, (predictions, point) in zip((-1, 1), models, strict=True):
        scores, positive = predictions.of(point.target)
        asked = positive if rate == "sensitivity" else ~positive
        right = (scores >= point.threshold) == positive
        unlike += sign * np.where(asked, right, 0)
    _, group = np.unique(models[0][0].drawn, return_inverse=True)
    by_group = np.bincount(group, unlike)
    better, worse = int((by_group > 0).sum()), int((by_group < 0).sum())
    unlike_by_chance = 2 * float(bdtr(min(better, worse), better + worse, 0.5))
    return min(1.0, unlike_by_chance) if better + worse else None


def compare_bundles(first: Path, second: Path, *, images: Path, draws: int, seed: int) -> list[Difference]:
    """`compare` of two bundles on the test images that neither was trained on.

    Raises:
        BundleError: a bundle is damaged.
        DataError: a bundle was trained on another image table: our test images may be its training images; or
            an image is on both sides of a split.
    """
    require_no_leakage(images)
    test = read_table(images / "images.parquet", split="test")
    packed, found = PackedImages(images), places(test)
    both = []
    for folder in (first, second):
        bundle = Bundle.open(folder, threads=1)
        require_table(bundle, images, name=str(folder))
        seen = look_at_images(bundle.graph, packed, found, description=folder.name)
        said = predictions_of(bundle.manifest, seen.probabilities, test)
        both.append((said, bundle.manifest.operating_points))
    return compare(*both, draws=draws, seed=seed)


def require_table(bundle: Bundle, images: Path, *, name: str) -> None:
    """Make sure that a bundle was trained on the image table of a folder of ingest.

    Raises:
        DataError: it was not, and the folder's test images may be among its training images.
    """
    if not is_made_of(bundle, images):
        raise DataError(f"{name}: trained on another image table than that of {images}")


def is_made_of(bundle: Bundle, images: Path) -> bool:
    """Is the image table of a folder of ingest the one that a bundle was made of?"""
    return bundle.manifest.lineage.get("images_sha256") == table_sha256(images)


def difference(metric: str, first: Sampled, second: Sampled) -> Difference:
    """A metric of two models over the same draws, the second's less the first's."""
    if first.value is None or second.value is None:
        return Difference(metric, first.value, second.value, None, None, None)
    value, draws = second.value - first.value, second.draws - first.draws
    defined = draws[np.isfinite(draws)]
    few = first.lesions is not None and first.lesions < LEAST_DRAWN
    if few or not len(defined):
        return Difference(metric, first.value, second.value, value, None, None)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Difference(metric, first.value, second.value, value, float(low), float(high))
