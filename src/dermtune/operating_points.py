"""Thresholds at which to act, each chosen on validation for what it is to be good at.

`score >= threshold` says yes. A threshold lies halfway between the two scores that it parts, so that no
rounding of another machine moves an image across; images that tie lie on one side.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dermtune.errors import ConfigError, DataError
from dermtune.goals import Goal
from dermtune.metrics import Predictions
from dermtune_bundle.manifest import MALIGNANT, OperatingPoint

Scores: TypeAlias = NDArray[np.floating]


def choose_operating_points(
    predictions: Predictions, goals: Mapping[str, Goal]
) -> tuple[OperatingPoint, ...]:
    """Choose a threshold for each goal, and say what it gives on the images that it is chosen on.

    Args:
        predictions: of validation images.
        goals: by the operating point's name.

    Raises:
        ConfigError: a target is no class of the task.
        DataError: no image is of a target, or all are.
    """
    return tuple(_choose(predictions, name, goal) for name, goal in goals.items())


def require_targets(goals: Mapping[str, Goal], classes: Mapping[str, bool]) -> None:
    """Make sure that each target is a class or that some class is malignant.

    Args:
        goals: by the operating point's name.
        classes: of the task: is it malignant?

    Raises:
        ConfigError: names the operating point.
    """
    for name, goal in goals.items():
        key = f"calibrate.operating_points.{name}.target"
        if goal.target == MALIGNANT and not any(classes.values()):
            raise ConfigError(f"{key}: none of the classes {', '.join(classes)} is malignant")
        if goal.target not in {*classes, MALIGNANT}:
            raise ConfigError(f"{key}: {goal.target!r} is no class; the classes are {', '.join(classes)}")


def threshold_for_sensitivity(scores: Scores, positive: NDArray[np.bool_], sensitivity: float) -> float:
    """The highest threshold that finds this share of the positives, or a little more where scores tie.

    Args:
        scores: (N,), higher means more likely positive.
        positive: (N,), some of them true.
        sensitivity: the goal, above 0 and at most 1.
    """
    highest_first = np.sort(scores[positive])[::-1]
    found = np.arange(1, len(highest_first) + 1) / len(highest_first)  # as it is measured: no rounding apart
    last = highest_first[np.argmax(found >= sensitivity)]
    return float(last + np.max(scores[scores < last], initial=0.0)) / 2


def threshold_for_specificity(scores: Scores, positive: NDArray[np.bool_], specificity: float) -> float:
    """The lowest threshold that leaves this share of the negatives alone, or a little more where scores tie.

    Args:
        scores: (N,) probabilities, higher means more likely positive.
        positive: (N,), not all of them true.
        specificity: the goal, above 0 and at most 1.
    """
    lowest_first = np.sort(scores[~positive])
    spared = np.arange(1, len(lowest_first) + 1) / len(lowest_first)
    last = lowest_first[np.argmax(spared >= specificity)]
    # where nothing scores higher, 1 flags what is certain, and only that
    return float(last + np.min(scores[scores > last], initial=1.0)) / 2


def balanced_threshold(scores: Scores, positive: NDArray[np.bool_]) -> float:
    """The threshold with the largest sum of sensitivity and specificity; the lowest of several.

    Args:
        scores: (N,), higher means more likely positive.
        positive: (N,), some but not all of them true.

    Source: Youden, Index for rating diagnostic tests, Cancer 1950.
    """
    values, group = np.unique(scores, return_inverse=True)
    rates = [np.bincount(group[part], minlength=len(values)) / part.sum() for part in (positive, ~positive)]
    found, flagged = (np.cumsum(rate[::-1])[::-1] for rate in rates)  # share with at least this score
    best = values[np.argmax(np.round(found - flagged, 12))]
    return float(best + np.max(values[values < best], initial=0.0)) / 2


def _choose(predictions: Predictions, name: str, goal: Goal) -> OperatingPoint:
    scores, positive = predictions.of(goal.target)
    if positive.all() or not positive.any():
        count = "all" if positive.any() else "no"
        raise DataError(
            f"operating point {name!r}: {count} validation images are {goal.target}; choose another target,"
            " or re-run ingest with a larger split.val"
        )
    if goal.sensitivity is not None:
        threshold = threshold_for_sensitivity(scores, positive, goal.sensitivity)
    elif goal.specificity is not None:
        threshold = threshold_for_specificity(scores, positive, goal.specificity)
    else:
        threshold = balanced_threshold(scores, positive)
    flagged = scores >= threshold
    found, spared = float(flagged[positive].mean()), float(1 - flagged[~positive].mean())
    # a negative that is as certain as any positive cannot be left alone by a probability's threshold
    is_reached = goal.specificity is None or spared >= goal.specificity - 1e-9
    return OperatingPoint(
        name=name,
        target=goal.target,
        threshold=threshold,
        goal=f"{goal} on validation{'' if is_reached else ', which no threshold gives'}",
        sensitivity=found,
        specificity=spared,
    )
