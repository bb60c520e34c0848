"""How well a map tells where a lesion is: three measures, and maps that know nothing of the image.

All is measured on a square of SIDE places a side, over which images of any shape are stretched: shares of an
area stay what they are.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermtune.appearance import Mask
from dermtune.metrics import Metric, estimate, resample, share

Map: TypeAlias = NDArray[np.floating]
Floats: TypeAlias = NDArray[np.float64]

SIDE: Final = 128
"""As ingest keeps masks."""
THRESHOLDS: Final = np.arange(0.05, 1.0, 0.05)
"""Shares of a map's maximum, above which a place counts as lit."""

MEASURES: Final = ("pointing", "overlap", "energy")
PRIORS: Final = ("mean_mask", "gaussian")
"""Maps that are the same for every image."""
REFERENCES: Final = (*PRIORS, "shown")
"""What the other methods are held against."""
METHODS: Final = ("shown", "contrast", "grad_cam", "finer", "occlusion", "untrained", *PRIORS, "best")


@dataclass(frozen=True)
class Judged:
    """Images whose lesion is outlined."""

    table: pd.DataFrame
    """N rows of the image table, numbered from 0."""
    masks: NDArray[np.bool_]
    """(N, SIDE, SIDE)."""
    outlined: int
    """Of how many images they are drawn."""
    left_out: int
    """Images of the split without an outline."""

    @property
    def groups(self) -> NDArray[np.object_]:
        """(N,) images that are drawn together."""
        return self.table["group_id"].to_numpy(object)


@dataclass(frozen=True)
class Looked:
    """What one image is named, and the maps of that class by method."""

    named: int
    maps: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Measured:
    """One method on N images; NaN where it has no map, or one without a place that speaks for the class."""

    pointing: NDArray[np.float64]
    overlap: NDArray[np.float64]
    energy: NDArray[np.float64]
    curve: NDArray[np.float64]
    """(T,) mean overlap at each threshold."""
    thresholds: tuple[float, float]
    """Chosen for each half of the lesions on the other."""


def stretch(activation: Map) -> NDArray[np.float32]:
    """A map's positive part (h, w) over the whole image (SIDE, SIDE), as `pictures.overlay` shows it."""
    return resample_map(np.maximum(activation, 0), SIDE)


def resample_map(activation: Map, side: int) -> NDArray[np.float32]:
    """A map (h, w) at (side, side) places, bilinear; its signs stay."""
    scaled = Image.fromarray(np.asarray(activation, np.float32))
    return np.asarray(scaled.resize((side, side), Image.Resampling.BILINEAR))


def peak(activation: Map) -> tuple[float, float]:
    """Row and column of the middle of a map's highest cell, as shares of the sides."""
    row, column = np.unravel_index(int(np.argmax(activation)), activation.shape)
    return (float(row) + 0.5) / activation.shape[0], (float(column) + 0.5) / activation.shape[1]


def points_inside(activation: Map, lesion: Mask) -> bool:
    """Does a map's highest cell (h, w) have its middle in the lesion (H, W)? No margin is allowed.

    Source: Zhang et al., Top-Down Neural Attention by Excitation Backprop, IJCV 2018, section 4.1, where a
    margin of 15 pixels is.
    """
    row, column = peak(activation)
    return bool(lesion[int(row * lesion.shape[0]), int(column * lesion.shape[1])])


def energy_inside(heat: Map, lesion: Mask) -> float:
    """Share of a map's sum that lies in the lesion, (H, W) both; NaN where the map is 0.

    Source: Wang et al., Score-CAM, CVPR workshops 2020, section 4.3.
    """
    total = float(heat.sum(dtype=np.float64))
    return float(heat[lesion].sum(dtype=np.float64)) / total if total > 0 else float("nan")


def overlaps(heat: Map, lesion: Mask) -> Floats:
    """Intersection over union of the lesion and what is lit above each of THRESHOLDS; NaN for a map of 0.

    Source: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016, section 3.2, where
    the threshold is a fifth of the maximum.
    """
    highest = float(heat.max())
    if highest <= 0:
        return np.full(len(THRESHOLDS), np.nan)
    lit = heat[None] >= (THRESHOLDS * highest)[:, None, None]
    both = (lit & lesion).sum((1, 2))
    found: Floats = both / (lit | lesion).sum((1, 2))
    return found


def overlap_by_other_half(
    curves: Floats, groups: NDArray[np.object_], *, seed: int
) -> tuple[Floats, tuple[float, float]]:
    """Overlap of each image at the threshold that is best, on the mean, for the other half of the lesions.

    Args:
        curves: (N, T), as `overlaps` gives them.
        groups: (N,) ids; images that share one are in one half.
        seed: draws the halves.

    Returns:
        Overlaps (N,), and the threshold of each half; NaN where the other half has no curve.
    """
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    first = np.isin(groups, names[: len(names) // 2])
    found, chosen = np.full(len(curves), np.nan), []
    for own in (first, ~first):
        other = curves[~own & ~np.isnan(curves).any(axis=1)]
        if not len(other):
            chosen.append(float("nan"))
            continue
        best = int(other.mean(axis=0).argmax())
        found[own] = curves[own, best]
        chosen.append(float(THRESHOLDS[best]))
    return found, (chosen[0], chosen[1])


def mean_mask(masks: Iterable[Mask]) -> Floats:
    """The share of lesions that cover each place, (SIDE, SIDE): the most that can be said without looking."""
    total, count = np.zeros((SIDE, SIDE)), 0
    for mask in masks:
        total += mask
        count += 1
    return total / count


def centred_gaussian(mean: Floats) -> Floats:
    """A bell around the middle, along each axis as wide as lesions spread, (SIDE, SIDE).

    Args:
        mean: as `mean_mask` gives it.
    """
    places = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    down, across = ((mean.sum(axis) * places**2).sum() / mean.sum() for axis in (1, 0))
    bell: Floats = np.exp(-(places[:, None] ** 2) / (2 * down) - places**2 / (2 * across))
    return bell


def best_map(lesion: Mask, shape: tuple[int, int]) -> Floats:
    """The share of each cell that the lesion covers: what a map of that shape can say at best."""
    rows = np.array_split(np.arange(lesion.shape[0]), shape[0])
    columns = np.array_split(np.arange(lesion.shape[1]), shape[1])
    return np.array([[lesion[np.ix_(row, column)].mean() for column in columns] for row in rows])


def measure_methods(
    looked: Sequence[Looked],
    judged: Judged,
    blind: dict[str, NDArray[np.float64]],
    *,
    seed: int,
) -> dict[str, Measured]:
    """Where the maps of each method lie; those of the untrained tails count as one method, on their mean.

    Args:
        looked: N images' maps.
        judged: the same images.
        blind: maps that are the same for each image, (SIDE, SIDE).
        seed: of the halves by which thresholds are chosen.

    Returns:
        By method: those of the maps, then `blind`, then `best`, the best map of the shape of `shown`.
    """
    names = sorted({name for one in looked for name in one.maps}, key=_order)
    found: dict[str, Measured] = {}
    for name in names:
        maps = [one.maps.get(name) for one in looked]
        found[name] = _measure(maps, judged, seed=seed)
    for name, values in blind.items():
        found[name] = _measure([values] * len(looked), judged, seed=seed)
    shape = looked[0].maps["shown"].shape
    best = [best_map(mask, (shape[0], shape[1])) for mask in judged.masks]
    found["best"] = _measure(best, judged, seed=seed)
    untrained = [found.pop(name) for name in names if name.startswith("untrained")]
    return _merge(found, untrained)


def _order(name: str) -> tuple[int, str]:
    return METHODS.index(name.partition(" ")[0]), name


def _merge(found: dict[str, Measured], untrained: Sequence[Measured]) -> dict[str, Measured]:
    if untrained:
        # a draw whose map lights nothing tells nothing: the mean is over the others
        means = {
            measure: np.ma.masked_invalid([getattr(one, measure) for one in untrained]).mean(0).filled(np.nan)
            for measure in (*MEASURES, "curve")
        }
        low, high = zip(*(one.thresholds for one in untrained), strict=True)
        found["untrained"] = Measured(**means, thresholds=(float(np.mean(low)), float(np.mean(high))))
    return {name: found[name] for name in METHODS if name in found}


def _measure(maps: Sequence[NDArray[np.float64] | None], judged: Judged, *, seed: int) -> Measured:
    nothing = np.full(len(THRESHOLDS), np.nan)
    pointing, energy, curves = [], [], []
    for activation, mask in zip(maps, judged.masks, strict=True):
        if activation is None or activation.max() <= 0:
            pointing.append(np.nan)
            energy.append(np.nan)
            curves.append(nothing)
            continue
        heat = stretch(activation)
        pointing.append(float(points_inside(activation, mask)))
        energy.append(energy_inside(heat, mask))
        curves.append(overlaps(heat, mask))
    stacked = np.stack(curves)
    overlap, thresholds = overlap_by_other_half(stacked, judged.groups, seed=seed)
    mean = np.ma.masked_invalid(stacked).mean(0).filled(np.nan)
    return Measured(np.array(pointing), overlap, np.array(energy), mean, thresholds)


def compare_methods(
    measured: dict[str, Measured], groups: NDArray[np.object_], *, draws: int, seed: int
) -> pd.DataFrame:
    """Each method's measures, and what they are above those of the maps that do not look, on the same images.

    Args:
        measured: by method, of N images.
        groups: (N,) ids; images that share one are drawn together.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        A row a method and measure: `method, measure, images, value, low, high`, and for each of REFERENCES
        `over_REFERENCE, …_low, …_high`, empty for PRIORS.
    """
    everything = np.ones(len(groups), bool)
    return pd.DataFrame(_rows(measured, [*measured], everything, groups, draws=draws, seed=seed))


def compare_groups(
    measured: dict[str, Measured], judged: Judged, is_right: NDArray[np.bool_], *, draws: int, seed: int
) -> pd.DataFrame:
    """`compare_methods` of the map that is shown and of the priors, by class, and by whether that is right.

    Returns:
        The same columns behind `group`.
    """
    labels = judged.table["label"].to_numpy(str)
    among = {str(label): labels == label for label in np.unique(labels)}
    among |= {"named rightly": is_right, "named wrongly": ~is_right}
    names = [name for name in ("shown", *PRIORS) if name in measured]
    return pd.DataFrame(
        {"group": group} | row
        for group, rows in among.items()
        if rows.any()
        for row in _rows(measured, names, rows, judged.groups, draws=draws, seed=seed)
    )


def _rows(
    measured: dict[str, Measured],
    names: Sequence[str],
    among: NDArray[np.bool_],
    groups: NDArray[np.object_],
    *,
    draws: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    metrics: dict[tuple[str, str, str], Metric] = {}
    for name in names:
        for measure in MEASURES:
            values = getattr(measured[name], measure)
            defined = among & ~np.isnan(values)
            is_hit = measure == "pointing" and name != "untrained"  # whose hits are means over draws
            filled = np.nan_to_num(values)
            metrics[name, measure, ""] = share(filled > 0 if is_hit else filled, defined)
            for other in REFERENCES:
                if name not in PRIORS and name != other:
                    than = getattr(measured[other], measure)
                    both = defined & ~np.isnan(than)
                    metrics[name, measure, other] = share(filled - np.nan_to_num(than), both)
    sampled = resample(metrics, groups, draws=draws, rng=np.random.default_rng(seed))
    for name in names:
        for measure in MEASURES:
            row: dict[str, Any] = {"method": name, "measure": measure}
            row["images"] = int(metrics[name, measure, ""].behind[0].sum())
            for other in ("", *REFERENCES):
                found = estimate(sampled[name, measure, other]) if (name, measure, other) in sampled else None
                what = f"over_{other}" if other else "value"
                ends = (f"{what}_low", f"{what}_high") if other else ("low", "high")
                row[what] = found and found.value
                row |= dict(zip(ends, (found and found.low, found and found.high), strict=True))
            yield row
