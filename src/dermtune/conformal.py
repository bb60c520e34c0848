"""Prediction sets: the classes that cannot be ruled out, so chosen that the right one is rarely left out.

Split conformal prediction, class by class: of each class's lesions, the stated share has its class in the
set, however rare the class. It holds for images drawn as those of validation are, and for no others.

Source: Vovk, Conditional validity of inductive conformal predictors, Machine Learning 2013, section 4.
"""

import numpy as np
import pandas as pd

from dermtune.metrics import Bools, Floats, Labels, Predictions, estimate, resample, share


def set_thresholds(probabilities: Floats, labels: Labels, coverage: float) -> Floats:
    """The least probability with which each class is in the set, (K,).

    A class with too few images for the coverage has 0: it is in every set.

    Args:
        probabilities: (N, K), of validation images.
        labels: (N,) class indices.
        coverage: the share of each class's images whose set is to hold their class, above 0 and below 1.
    """
    classes = probabilities.shape[1]
    thresholds = np.zeros(classes)
    for column in range(classes):
        own = np.sort(probabilities[labels == column, column])
        # one more than are there: the image to come is as likely to fall into any of the gaps
        left_out = int(np.floor((len(own) + 1) * (1 - coverage) + 1e-9)) - 1
        if left_out >= 0:
            thresholds[column] = own[left_out]
    return thresholds


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
    sampled = resample(metrics, predictions.lesions, draws=draws, rng=rng)
    rows = []
    for name, among in groups.items():
        row: dict[str, object] = {"class": name, "images": int(among.sum())}
        for key in ("coverage", "mean_size"):
            found = estimate(sampled[name, key])
            row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)
