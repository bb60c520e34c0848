"""Prediction sets: the classes that cannot be ruled out, so chosen that the right one is rarely left out.

Split conformal prediction, class by class: of each class's lesions, the stated share is to have its class in
the set, however rare the class. That holds for lesions drawn as those of validation are, had validation been
used for nothing else; it also stopped the training and calibrated, so that the share on test is what counts.

Source: Vovk, Conditional validity of inductive conformal predictors, Machine Learning 2013, section 4.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.metrics import Bools, Floats, Labels, Predictions, estimate, resample, share

_ROUNDING = 1e-6  # of float32, in which graphs answer


def set_thresholds(
    probabilities: Floats, labels: Labels, groups: NDArray[np.object_], coverage: float
) -> Floats:
    """The least probability with which each class is in the set, (K,).

    A lesion counts once, by the image of it that is hardest: images of one lesion are no more evidence than
    one. A class with too few lesions for the coverage has 0: it is in every set.

    Args:
        probabilities: (N, K), of validation images.
        labels: (N,) class indices.
        groups: (N,) ids; images that share one count once.
        coverage: the share of each class's lesions whose set is to hold their class, above 0 and below 1.
    """
    classes = probabilities.shape[1]
    thresholds = np.zeros(classes)
    for column in range(classes):
        own = labels == column
        hardest = pd.Series(probabilities[own, column]).groupby(groups[own]).min()
        ordered = np.sort(hardest.to_numpy())
        # one more than are there: the lesion to come is as likely to fall into any of the gaps
        left_out = int(np.floor((len(ordered) + 1) * (1 - coverage) + 1e-9)) - 1
        if left_out >= 0:
            thresholds[column] = _just_below(ordered[left_out], probabilities[:, column])
    return thresholds


def _just_below(score: float, scores: Floats) -> float:
    """Halfway to the next lower score, so that another machine's rounding moves no image that ties out."""
    return float(score + np.max(scores[scores < score - _ROUNDING], initial=0.0)) / 2


def measure_sets(
    predictions: Predictions, members: Bools, *, draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    """How often the set holds the right class, and how large it is, of each class and of all.

    Args:
        predictions: of N images.
        members: which classes are in the set of each image, (N, K).
        draws: how many draws of lesions stand behind each interval.
        rng: where they come from.

    Returns:
        Columns: `class` (the last row is `all`), `images`, `coverage, coverage_low, coverage_high`
        and `mean_size, mean_size_low, mean_size_high`.
    """
    held, size = members[np.arange(len(members)), predictions.labels], members.sum(axis=1)
    groups = {name: predictions.labels == column for column, name in enumerate(predictions.classes)}
    groups["all"] = np.ones(len(held), bool)
    metrics = {(name, "coverage"): share(held, among) for name, among in groups.items()}
    metrics |= {(name, "mean_size"): share(size, among) for name, among in groups.items()}
    sampled = resample(metrics, predictions.drawn, draws=draws, rng=rng)
    rows = []
    for name, among in groups.items():
        row: dict[str, object] = {"class": name, "images": int(among.sum())}
        for key in ("coverage", "mean_size"):
            found = estimate(sampled[name, key])
            row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)
