"""Do two ways to tell what a network looked at agree on an image?

Source: Krishna et al., The Disagreement Problem in Explainable Machine Learning, TMLR 2024: practitioners
compare ranks, and what is ranked highest.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from dermtune.metrics import estimate, resample, share
from dermtune.studies.localisation import Judged, Looked, Map, peak, points_inside, resample_map


def rank_correlation(one: Map, other: Map) -> float:
    """Spearman's, over the cells of the map that has more, with signs; NaN where a map is flat."""
    side = max(len(one), len(other))
    first, second = (resample_map(values, side).ravel() for values in (one, other))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


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
        `image_id, group_id, label, named, is_right, correlation, grad_cam_inside, occlusion_inside, apart`
        (maxima, as a share of the side), `agree`, and `row` among the judged images.
    """
    rows = []
    for row, (one, mask) in enumerate(zip(looked, judged.masks, strict=True)):
        if "occlusion" not in one.maps:
            continue
        first, second = one.maps["grad_cam"], one.maps["occlusion"]
        correlation = rank_correlation(first, second)
        inside = points_inside(first, mask), points_inside(second, mask)
        image = judged.table.iloc[row]
        rows.append(
            {
                "image_id": image["image_id"],
                "group_id": image["group_id"],
                "label": image["label"],
                "named": classes[one.named],
                "is_right": bool(is_right[row]),
                "correlation": correlation,
                "grad_cam_inside": inside[0],
                "occlusion_inside": inside[1],
                "apart": float(np.hypot(*np.subtract(peak(first), peak(second)))),
                "agree": bool(correlation >= least and inside[0] == inside[1]),
                "row": row,
            }
        )
    return pd.DataFrame(rows).sort_values(["agree", "correlation"], ignore_index=True, na_position="first")


def summarize_agreement(agreement: pd.DataFrame, *, draws: int, seed: int) -> pd.DataFrame:
    """Share of images that agree, mean rank correlation, and where the maxima lie, with 95% intervals.

    Args:
        agreement: as `measure_agreement` gives it.
        draws: of the bootstrap over lesions.
        seed: of the bootstrap.

    Returns:
        A row a group (`all`, each class, `named rightly`, `named wrongly`) and measure (`agree, correlation,
        both_inside, grad_cam_alone, occlusion_alone, both_outside`): `group, measure, images, value, low,
        high`.
    """
    labels = agreement["label"].to_numpy(str)
    right, one, other = (
        agreement[name].to_numpy(bool) for name in ("is_right", "grad_cam_inside", "occlusion_inside")
    )
    among = {"all": np.ones(len(labels), bool)} | {label: labels == label for label in np.unique(labels)}
    among |= {"named rightly": right, "named wrongly": ~right}
    correlation = agreement["correlation"].to_numpy(float)
    values = {
        "agree": agreement["agree"].to_numpy(bool),
        "correlation": np.nan_to_num(correlation),
        "both_inside": one & other,
        "grad_cam_alone": one & ~other,
        "occlusion_alone": ~one & other,
        "both_outside": ~one & ~other,
    }
    metrics = {
        (group, measure): share(found, rows & ~np.isnan(correlation) if measure == "correlation" else rows)
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
