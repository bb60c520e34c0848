"""Does the model serve some people less well than others? The same decision, measured group by group."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from dermtune.appearance import SKIN_TONES, skin_tone
from dermtune.metrics import (
    Metric,
    Predictions,
    Sampled,
    auroc,
    estimate,
    resample,
    sensitivity,
    specificity,
)
from dermtune_bundle.manifest import OperatingPoint

LEAST_LESIONS = 10
"""Of positives, or of negatives: a rate over fewer lesions says nothing."""
NOT_GIVEN = "not given"
AGES = ("under 30", "30 to 44", "45 to 59", "60 to 74", "75 and over")
_TONES = (
    *(f"type {number}" for number in ("I", "II", "III", "IV", "V", "VI")),  # Fitzpatrick's
    *(f"{tone} (estimated)" for tone in SKIN_TONES),
)
_AGE_BOUNDS = (30, 45, 60, 75)
_SIZES = ("small (under 10% of the image)", "medium (10% to 30%)", "large (over 30%)")
_SIZE_BOUNDS = (0.10, 0.30)
ATTRIBUTES: Mapping[str, str] = {
    "age": "Age",
    "sex": "Sex",
    "site": "Site on the body",
    "dx_type": "How the diagnosis was confirmed",
    "skin_tone": "Skin tone",
    "lesion_size": "Lesion size, estimated",
    "source": "Image source",
}


def groups_of(table: pd.DataFrame) -> pd.DataFrame:
    """The group of each image in each of `ATTRIBUTES`, as text; what is missing is `not given`.

    Args:
        table: rows of the image table, with `lesion_share` and `ita` of `appearance` as well.
    """

    def band(values: pd.Series, bounds: tuple[float, ...], names: tuple[str, ...]) -> pd.Series:
        numbers = values.to_numpy(dtype=float, na_value=np.nan)
        found = np.array(names, dtype=object)[np.digitize(numbers, bounds)]
        return pd.Series(np.where(np.isnan(numbers), NOT_GIVEN, found), index=table.index)

    estimated = table["ita"].map(lambda ita: NOT_GIVEN if pd.isna(ita) else f"{skin_tone(ita)} (estimated)")
    tones = ("type " + table["skin_tone"]).astype(object).where(table["skin_tone"].notna(), estimated)
    columns = {
        "age": band(table["age"], _AGE_BOUNDS, AGES),
        "skin_tone": tones,
        "lesion_size": band(table["lesion_share"], _SIZE_BOUNDS, _SIZES),
    }
    columns |= {name: table[name].fillna(NOT_GIVEN) for name in ATTRIBUTES if name not in columns}
    return pd.DataFrame({name: columns[name].astype(str) for name in ATTRIBUTES})


def measure_subgroups(
    predictions: Predictions,
    groups: pd.DataFrame,
    point: OperatingPoint,
    *,
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Sensitivity and specificity at one operating point, and AUROC of its target, in each group.

    Args:
        predictions: of N images.
        groups: (N, attributes), as `groups_of` gives them.
        point: the decision that is looked at.
        draws: how many draws of lesions stand behind each interval.
        rng: where they come from.

    Returns:
        A row a group: `attribute, group, images, lesions, positives, negatives` (the last two in lesions),
        `sensitivity, specificity, auroc` with `_low` and `_high` each, None where fewer than `LEAST_LESIONS`
        lesions stand behind it.
    """
    scores, positive = predictions.of(point.target)
    cells = [
        _Cell(attribute, group, (groups[attribute] == group).to_numpy())
        for attribute in map(str, groups)
        for group in ordered(attribute, groups[attribute])
    ]
    metrics: dict[tuple[int, str], Metric] = {}
    for index, cell in enumerate(cells):
        metrics[index, "sensitivity"] = _within(cell, sensitivity, scores, positive, point.threshold)
        metrics[index, "specificity"] = _within(cell, specificity, scores, positive, point.threshold)
        metrics[index, "auroc"] = _within(cell, auroc, scores, positive)
    sampled = resample(metrics, predictions.drawn, draws=draws, rng=rng)
    rows = []
    for index, cell in enumerate(cells):
        lesions, is_positive = predictions.lesions[cell.members], positive[cell.members]
        counts = {
            "images": int(cell.members.sum()),
            "lesions": len(np.unique(lesions)),
            "positives": len(np.unique(lesions[is_positive])),
            "negatives": len(np.unique(lesions[~is_positive])),
        }
        behind = {
            "sensitivity": ["positives"],
            "specificity": ["negatives"],
            "auroc": ["positives", "negatives"],
        }
        row: dict[str, object] = {"attribute": cell.attribute, "group": cell.group, **counts}
        for name, needed in behind.items():
            enough = min(counts[one] for one in needed) >= LEAST_LESIONS
            row |= _numbers(name, sampled[index, name] if enough else None)
        rows.append(row)
    return pd.DataFrame(rows)


def worst_group(table: pd.DataFrame, metric: str = "sensitivity") -> "dict[str, Any] | None":
    """The row with the lowest value, of groups large enough and known that have another to be compared with.

    None where there is none.
    """
    known = table[(table["group"] != NOT_GIVEN) & table[metric].notna()]
    known = known[known.groupby("attribute")["group"].transform("size") > 1]
    if known.empty:
        return None
    (row,) = known.iloc[[int(known[metric].to_numpy(float).argmin())]].to_dict("records")
    return {str(key): value for key, value in row.items()}


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    """By attribute, how far its best and its worst group lie apart, of those large enough and known.

    Columns: `attribute, groups` (how many are compared), `sensitivity_gap, specificity_gap`; where all groups
    are large enough, the larger of the two gaps is Fairlearn's equalized odds difference. The widest of many
    gaps is wide by chance alone: read it beside the groups' intervals.
    """
    known = table[table["group"] != NOT_GIVEN]
    rows = []
    for attribute, part in known.groupby("attribute", sort=False):
        row: dict[str, object] = {"attribute": attribute, "groups": int(part["sensitivity"].notna().sum())}
        for metric in ("sensitivity", "specificity"):
            values = part[metric].dropna().astype(float)
            row[f"{metric}_gap"] = float(values.max() - values.min()) if len(values) > 1 else None
        rows.append(row)
    return pd.DataFrame(rows, columns=["attribute", "groups", "sensitivity_gap", "specificity_gap"])


@dataclass(frozen=True)
class _Cell:
    attribute: str
    group: str
    members: np.ndarray
    """(N,) bool"""


def _within(
    cell: _Cell, metric: Callable[..., Metric], scores: np.ndarray, positive: np.ndarray, *more: float
) -> Metric:
    """A metric of the members alone, under weights of all images."""
    inner = metric(scores[cell.members], positive[cell.members], *more)
    rows = np.flatnonzero(cell.members)

    def among_all(side: np.ndarray) -> np.ndarray:
        found = np.zeros(len(scores), bool)
        found[rows[side]] = True
        return found

    return replace(
        inner,
        weighted=lambda weights: inner.weighted(weights[:, cell.members]),
        behind=tuple(among_all(side) for side in inner.behind),
    )


def ordered(attribute: str, values: pd.Series) -> list[str]:
    """Groups that occur: in their natural order where they have one, else the most frequent first."""
    natural = {"age": AGES, "lesion_size": _SIZES, "skin_tone": _TONES}.get(attribute)
    present = values.value_counts()
    order = natural or [name for name in present.index if name != NOT_GIVEN]
    return [*(name for name in order if name in present), *([NOT_GIVEN] if NOT_GIVEN in present else [])]


def _numbers(name: str, sampled: Sampled | None) -> dict[str, float | None]:
    found = None if sampled is None else estimate(sampled)
    if found is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
