"""Do two ways to tell what a network looked at agree on an image?

Source: Krishna et al., The Disagreement Problem in Explainable Machine Learning, TMLR 2024: practitioners
compare ranks, and what is ranked highest.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from dermtune.metrics import estimate, resample, share
from dermtune.studies.localisation import Judged, Looked, Map, peak, points_inside, resample_map


def rank_correlations(some: Sequence[Map], others: Sequence[Map]) -> NDArray[np.float64]:
    """Spearman's, of each of N maps with each of M: (N, M), NaN where a map is flat.

    Args:
        some: (h, w) each; signs count. All are resampled to the side of the largest.
        others: the same.
    """
    side = max(len(one) for one in (*some, *others))
    first, second = (_unit_ranks(maps, side) for maps in (some, others))
    return np.asarray(first @ second.T, np.float64)


def _unit_ranks(maps: Sequence[Map], side: int) -> NDArray[np.float64]:
    """Ranks of the cells (N, side²), less their mean and of length one."""
    ranks = np.stack([rankdata(resample_map(values, side)) for values in maps]).reshape(len(maps), -1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(ranks, length, out=np.full_like(ranks, np.nan), where=length > 0)
    return unit


def measure_agreement(
    looked: Sequence[Looked],
    judged: Judged,
    is_right: NDArray[np.bool_],
    classes: Sequence[str],
    *,
    least: float,
) -> pd.DataFrame:
    """Do Grad-CAM and occlusion agree? A row an image that has both, the least alike first.

    They agree where the ranks of their cells correlate by `least` or more, and both have their maximum in the
    lesion or both beside it.

    Returns:
        `image_id, group_id, label, named, is_right, correlation, by_chance` (the mean correlation with
        occlusion maps of other lesions: the lesion is always in the middle), `grad_cam_inside,
        occlusion_inside, apart` (maxima, as a share of the side), `agree`, and `row` among the judged images.
    """
    rows = [row for row, one in enumerate(looked) if "occlusion" in one.maps]
    first, second = ([looked[row].maps[name] for row in rows] for name in ("grad_cam", "occlusion"))
    correlations = rank_correlations(first, second)
    groups = judged.groups[rows]
    unlike = (groups[:, None] != groups) & ~np.isnan(correlations)
    chance = np.ma.array(correlations, mask=~unlike).mean(axis=1).filled(np.nan)
    masks = judged.masks[rows]
    inside = [
        np.array([points_inside(one, mask) for one, mask in zip(maps, masks, strict=True)])
        for maps in (first, second)
    ]
    correlation = correlations.diagonal()
    table = judged.table.iloc[rows][["image_id", "group_id", "label"]].assign(
        named=[classes[looked[row].named] for row in rows],
        is_right=is_right[rows],
        correlation=correlation,
        by_chance=chance,
        grad_cam_inside=inside[0],
        occlusion_inside=inside[1],
        apart=[np.hypot(*np.subtract(peak(a), peak(b))) for a, b in zip(first, second, strict=True)],
        agree=(correlation >= least) & (inside[0] == inside[1]),
        row=rows,
    )
    return table.sort_values(["agree", "correlation"], ignore_index=True, na_position="first")


def summarize_agreement(agreement: pd.DataFrame, *, draws: int, seed: int) -> pd.DataFrame:
    """Share of images that agree, mean rank correlation, and where the maxima lie, with 95% intervals.

    Args:
        agreement: as `measure_agreement` gives it.
        draws: of the bootstrap over lesions.
        seed: of the bootstrap.

    Returns:
        A row a group (`all`, each class, `named rightly`, `named wrongly`) and measure (`agree, correlation,
        by_chance, above_chance` (the difference of both), `both_inside, grad_cam_alone, occlusion_alone,
        both_outside`): `group, measure, images, value, low, high`.
    """
    labels = agreement["label"].to_numpy(str)
    right, one, other = (
        agreement[name].to_numpy(bool) for name in ("is_right", "grad_cam_inside", "occlusion_inside")
    )
    among = {"all": np.ones(len(labels), bool)} | {label: labels == label for label in np.unique(labels)}
    among |= {"named rightly": right, "named wrongly": ~right}
    correlation, chance = (agreement[name].to_numpy(float) for name in ("correlation", "by_chance"))
    values = {
        "agree": agreement["agree"].to_numpy(bool),
        "correlation": correlation,
        "by_chance": chance,
        "above_chance": correlation - chance,
        "both_inside": one & other,
        "grad_cam_alone": one & ~other,
        "occlusion_alone": ~one & other,
        "both_outside": ~one & ~other,
    }
    metrics = {
        (group, measure): share(found, rows & ~np.isnan(found))
        for group, rows in among.items()
        if rows.any()
        for measure, found in values.items()
    }
    groups = agreement["group_id"].to_numpy(object)
    sampled = resample(metrics, groups, draws=draws, rng=np.random.default_rng(seed))
    rows = []
    for (group, measure), metric in metrics.items():
        found = estimate(sampled[group, measure])
        rows.append((group, measure, int(metric.behind[0].sum()), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["group", "measure", "images", "value", "low", "high"])
