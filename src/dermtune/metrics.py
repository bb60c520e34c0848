"""How good predictions are, with 95% intervals by bootstrap over lesions: pure functions on arrays.

A draw of lesions with replacement is nothing but a whole number of times that each image counts. So a
`Metric` is its value on all images and the same under image weights, for many draws at once.

What can't be computed is undefined: None, or NaN within draws; never 0 or 1.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from dermtune_bundle.manifest import MALIGNANT, Contract, OperatingPoint

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Labels: TypeAlias = NDArray[np.int64]
Key = TypeVar("Key")

BINS = 10
"""Bins between 0 and 1, for the calibration errors and the reliability tables."""
LEAST_SENSITIVITY = 0.80
"""Below it, no one would use a test for cancer: the partial AUROC looks above it."""
LEAST_DRAWN = 3
"""Lesions, on each side, that a bootstrap needs: of one or two, every draw is nearly alike."""
_CHUNK = 1 << 18  # weights in memory at once: 2 MiB, which also fits a processor's cache
_DIGITS = 6
_MACRO_MEANS: dict[str, tuple[str, ...]] = {
    "auroc": ("auroc", "macro"),
    "average_precision": ("average_precision", "macro"),
    "recall": ("balanced_accuracy",),
    "f1": ("f1", "macro"),
    "partial_auroc": ("partial_auroc", "macro"),
}
_UNDEFINED = "no test image counts in it, or none stands against those that do"


@dataclass(frozen=True)
class Metric:
    """A metric of one sample of images."""

    value: float | None
    """On all images, each counted once; None where undefined."""
    weighted: Callable[[Floats], Floats]
    """Weights (draws, N) to values (draws,), NaN where undefined."""
    behind: tuple[Bools, ...] = ()
    """Images (N,) that it is about: those of a share, or positives and negatives."""
    is_share: bool = False
    """Is it a share of images, for which an exact interval exists?"""
    is_biased: bool = False
    """Does resampling add to it, as to any mean of absolute values?"""


@dataclass(frozen=True)
class Sampled:
    """A metric and its values over the draws of a bootstrap."""

    value: float | None
    draws: Floats
    """(draws,), NaN where undefined."""
    classes: int | None = None
    """How many classes a macro mean is over; None for other metrics."""
    lesions: int | None = None
    """On that of its sides, or in that of its classes, that has fewest; None where it is about all images."""
    is_share: bool = False
    is_biased: bool = False
    interval: tuple[float, float] | None = None
    """Where it is not that of the draws."""


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95% interval; all None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    left_out: int = 0
    """Draws in which the metric was undefined; the interval is over the others."""


@dataclass(frozen=True)
class Predictions:
    """What a model said of N images, and what they were."""

    classes: tuple[str, ...]
    """K names, in the order of the columns of `probabilities`."""
    probabilities: Floats
    """(N, K)"""
    labels: Labels
    """(N,) indices of `classes`."""
    named: Labels
    """(N,) indices of `classes`: the one class that the model names."""
    lesions: NDArray[np.object_]
    """(N,) ids."""

    malignant: tuple[bool, ...] = ()
    """(K,) which classes are malignant; none where it is not asked."""
    groups: NDArray[np.object_] | None = None
    """(N,) ids of lesions, patients and copies joined, as the image table has them; None: `lesions`."""

    @property
    def drawn(self) -> NDArray[np.object_]:
        """(N,) ids: images that share one are drawn together, for they say less than as many others would."""
        return self.lesions if self.groups is None else self.groups

    def only(self, kept: Bools) -> "Predictions":
        """Of some of the images, (N,)."""
        groups = None if self.groups is None else self.groups[kept]
        return replace(
            self,
            probabilities=self.probabilities[kept],
            labels=self.labels[kept],
            named=self.named[kept],
            lesions=self.lesions[kept],
            groups=groups,
        )

    def of(self, name: str) -> tuple[Floats, Bools]:
        """One class, or `malignant`, against the rest: scores (N,) and which images are of it (N,)."""
        if name == MALIGNANT:
            columns = np.flatnonzero(self.malignant)
            # as the bundle sums them: a sum of probabilities must not exceed one by its rounding
            return np.minimum(self.probabilities[:, columns].sum(axis=1), 1), np.isin(self.labels, columns)
        column = self.classes.index(name)
        return self.probabilities[:, column], self.labels == column


def predictions_of(contract: Contract, probabilities: Floats, table: pd.DataFrame) -> Predictions:
    """What a model said of images, and what they were.

    Args:
        contract: which classes it knows, and which it names.
        probabilities: (N, K)
        table: N rows of the image table; their labels are classes of the model.
    """
    classes = tuple(known.name for known in contract.classes)
    return Predictions(
        classes,
        probabilities,
        np.array([classes.index(label) for label in table["label"]], dtype=np.int64),
        contract.named(probabilities),
        table["lesion_id"].to_numpy(dtype=object),
        tuple(known.malignant for known in contract.classes),
        table["group_id"].to_numpy(dtype=object),
    )


def share(values: NDArray[Any], among: Bools) -> Metric:
    """Mean of values (N,) over the images `among` (N,), for instance the share of them that was found."""
    kept = np.where(among, values, 0).astype(np.float64)
    counted = among.astype(np.float64)

    def weighted(weights: Floats) -> Floats:
        return _ratio(weights @ kept, weights @ counted)

    value = float(values[among].mean()) if among.any() else None
    return Metric(value, weighted, (among,), is_share=values.dtype == bool)


def accuracy(named: Labels, labels: Labels) -> Metric:
    """Share of images (N,) whose class is the one that was named."""
    return share(named == labels, np.ones(len(labels), bool))


def recall(named: Labels, labels: Labels, column: int) -> Metric:
    """Share of a class's images that it was named for; their mean over the classes is balanced accuracy."""
    return share(named == labels, labels == column)


def sensitivity(scores: Floats, positive: Bools, threshold: float) -> Metric:
    """Share of the positives with a score of at least the threshold."""
    return share(scores >= threshold, positive)


def specificity(scores: Floats, positive: Bools, threshold: float) -> Metric:
    """Share of the negatives with a score below the threshold."""
    return share(scores < threshold, ~positive)


def ppv(scores: Floats, positive: Bools, threshold: float) -> Metric:
    """Positive predictive value: share of positives among images that score at least the threshold."""
    return share(positive, scores >= threshold)


def npv(scores: Floats, positive: Bools, threshold: float) -> Metric:
    """Negative predictive value: share of negatives among images that score below the threshold."""
    return share(~positive, scores < threshold)


def at_prevalence(sensitivity: Sampled, specificity: Sampled, prevalence: float) -> tuple[Sampled, Sampled]:
    """Positive and negative predictive value where this share of the lesions is positive.

    Source: Bayes' theorem; Altman and Bland, Diagnostic tests 2: predictive values, BMJ 1994.
    """

    def ppv(found: Floats, spared: Floats) -> Floats:
        true = found * prevalence
        return _ratio(true, true + (1 - spared) * (1 - prevalence))

    def npv(found: Floats, spared: Floats) -> Floats:
        true = spared * (1 - prevalence)
        return _ratio(true, true + (1 - found) * prevalence)

    def sampled(value: Callable[[Floats, Floats], Floats]) -> Sampled:
        draws = value(sensitivity.draws, specificity.draws)
        ends = [estimate(rate) for rate in (sensitivity, specificity)]
        # both values rise with both rates, so that the corners bound them
        found, low, high = (
            value(*(np.array([getattr(end, name)], np.float64) for end in ends))[0]
            for name in ("value", "low", "high")
        )
        if np.isnan(found):
            return Sampled(None, draws)
        # where one rate is 0 or 1 in every draw, the draws know nothing of its exact interval
        exact = any(rate.value in (0, 1) for rate in (sensitivity, specificity))
        corners = (0.0 if np.isnan(low) else float(low), 1.0 if np.isnan(high) else float(high))
        return Sampled(float(found), draws, interval=corners if exact else None)

    return sampled(ppv), sampled(npv)


def f1(named: Labels, labels: Labels, column: int) -> Metric:
    """Harmonic mean of a class's recall and precision; undefined where no image is of it.

    Source: van Rijsbergen, Information Retrieval, 1979.
    """
    truth, said = labels == column, named == column
    right, either = 2.0 * (truth & said), truth.astype(np.float64) + said

    def weighted(weights: Floats) -> Floats:
        values = _ratio(weights @ right, weights @ either)
        values[weights @ truth.astype(np.float64) == 0] = np.nan
        return values

    return Metric(float(right.sum() / either.sum()) if truth.any() else None, weighted, (truth,))


def negative_log_likelihood(probabilities: Floats, labels: Labels) -> Metric:
    """Mean of minus the logarithm of the right class's probability, in nats; 0 is perfect.

    A probability of 0 counts as the smallest that float32, in which graphs answer, can hold.
    """
    right = probabilities[np.arange(len(labels)), labels]
    losses = -np.log(np.maximum(right, np.finfo(np.float32).tiny))
    return share(losses, np.ones(len(labels), bool))


def brier(probabilities: Floats, labels: Labels) -> Metric:
    """Squared error summed over the classes: 0 is perfect, 2 is worst.

    Source: Brier, Verification of forecasts expressed in terms of probability, 1950.
    """
    truth = np.eye(probabilities.shape[1])[labels]
    return share(((probabilities - truth) ** 2).sum(axis=1), np.ones(len(labels), bool))


def expected_calibration_error(probabilities: Floats, labels: Labels) -> Metric:
    """Mean distance, over images, between a bin's confidence and accuracy; top label, `BINS` equal bins.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    confidence, right = top_label(probabilities, labels)
    gaps = np.eye(BINS)[_bin(confidence)] * (confidence - right)[:, None]  # (N, BINS)

    def weighted(weights: Floats) -> Floats:
        return _ratio(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))

    return Metric(_only(weighted, len(labels)), weighted, is_biased=True)


def classwise_calibration_error(probabilities: Floats, labels: Labels) -> Metric:
    """Mean distance, over classes and images, between a bin's probability and frequency; bins equally full.

    Unlike the error of the top label, it sees the small probabilities of rare classes.

    Source: Nixon et al., Measuring Calibration in Deep Learning, CVPR workshops 2019: adaptive, all classes.
    """
    count, classes = probabilities.shape
    truth = np.eye(classes)[labels]
    bins = [_equally_full(probabilities[:, column]) for column in range(classes)]
    members = np.concatenate([np.eye(BINS)[one] for one in bins], axis=1)  # (N, K * BINS)
    gaps = members * np.repeat(probabilities - truth, BINS, axis=1)

    def weighted(weights: Floats) -> Floats:
        return _ratio(np.abs(weights @ gaps).sum(axis=1) / classes, weights.sum(axis=1))

    return Metric(_only(weighted, count), weighted, is_biased=True)


def partial_auroc(scores: Floats, positive: Bools, least: float = LEAST_SENSITIVITY) -> Metric:
    """Area below the ROC curve and above a sensitivity of `least`; `1 - least` is perfect.

    Guessing gives half the square of that. Source: the metric of the ISIC 2024 challenge (Kurtansky et al.,
    The SLICE-3D dataset, Scientific Data 2024).
    """
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, values=True)  # of the images that tie
    ends = np.flatnonzero(is_last) + 1
    is_positive = positive[order].astype(np.float64)

    def rates(weights: Floats) -> Floats:
        sums = _running_sum(weights)
        points = np.concatenate([sums[:, :1], sums[:, ends]], axis=1)
        return _ratio(points, np.broadcast_to(sums[:, -1:], points.shape))

    def weighted(weights: Floats) -> Floats:
        ordered = weights[:, order]
        found, alarms = rates(ordered * is_positive), rates(ordered * (1 - is_positive))
        low, high = np.maximum(found[:, :-1], least), np.maximum(found[:, 1:], least)
        rise = found[:, 1:] - found[:, :-1]
        before = np.divide(low - found[:, :-1], rise, out=np.zeros_like(rise), where=rise > 0)
        alarms_at_low = alarms[:, :-1] + before * (alarms[:, 1:] - alarms[:, :-1])
        area: Floats = ((high - low) * (1 - (alarms_at_low + alarms[:, 1:]) / 2)).sum(axis=1)
        return area

    defined = bool(positive.any() and not positive.all())
    return Metric(_only(weighted, len(scores)) if defined else None, weighted, (positive, ~positive))


def auroc(scores: Floats, positive: Bools) -> Metric:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half."""
    order = np.flatnonzero(~positive)[np.argsort(scores[~positive])]  # negatives, lowest score first
    positives = np.flatnonzero(positive)
    below = np.searchsorted(scores[order], scores[positives], "left")
    up_to = np.searchsorted(scores[order], scores[positives], "right")

    def weighted(weights: Floats) -> Floats:
        negatives, found = _running_sum(weights[:, order]), weights[:, positives]
        wins = np.einsum("dp,dp->d", found, negatives[:, below] + negatives[:, up_to]) / 2
        return _ratio(wins, found.sum(axis=1) * negatives[:, -1])

    defined = positive.any() and not positive.all()
    return Metric(
        float(roc_auc_score(positive, scores)) if defined else None, weighted, (positive, ~positive)
    )


def macro_auroc(probabilities: Floats, labels: Labels) -> float | None:
    """Mean AUROC, each class against the rest, of probabilities (N, K); None: all images are of one class.

    It is over the classes that some of the images have, but not all.
    """
    columns = [
        column for column in range(probabilities.shape[1]) if 0 < (labels == column).sum() < len(labels)
    ]
    areas = [float(roc_auc_score(labels == column, probabilities[:, column])) for column in columns]
    return float(np.mean(areas)) if areas else None


def average_precision(scores: Floats, positive: Bools) -> Metric:
    """Mean, over the positives, of the precision at each one's score."""
    positives = np.flatnonzero(positive)[np.argsort(-scores[positive])]  # highest score first
    others = np.flatnonzero(~positive)[np.argsort(-scores[~positive])]
    hits = np.searchsorted(-scores[positives], -scores[positives], "right")  # positives that score as high
    alarms = np.searchsorted(-scores[others], -scores[positives], "right")  # negatives that do

    def weighted(weights: Floats) -> Floats:
        found = weights[:, positives]
        true = _running_sum(found)[:, hits]
        false = _running_sum(weights[:, others])[:, alarms]
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=true > 0)
        return _ratio(np.einsum("dp,dp->d", found, precision), found.sum(axis=1))

    value = float(average_precision_score(positive, scores)) if positive.any() else None
    return Metric(value, weighted, (positive,))


def macro(sampled: Sequence[Sampled]) -> Sampled:
    """Mean over the classes in which the metric is defined, and how many they are.

    A draw that lacks one of these classes is undefined: the mean of the others would be another metric.
    """
    defined = [one for one in sampled if one.value is not None]
    if not defined:
        return Sampled(None, np.full_like(sampled[0].draws, np.nan), classes=0)
    value = float(np.mean([one.value for one in defined if one.value is not None]))
    lesions = min((one.lesions for one in defined if one.lesions is not None), default=None)
    draws: Floats = np.mean([one.draws for one in defined], axis=0)
    return Sampled(value, draws, classes=len(defined), lesions=lesions)


def lesion_weights(lesions: NDArray[np.object_], *, draws: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each image counts when lesions are drawn with replacement, in chunks (some draws, N)."""
    if not len(lesions):
        yield np.zeros((draws, 0))
        return
    _, index = np.unique(lesions, return_inverse=True)
    count = int(index.max()) + 1
    rows = max(1, _CHUNK // len(lesions))
    for start in range(0, draws, rows):
        size = (min(rows, draws - start), count)
        flat = rng.integers(count, size=size) + count * np.arange(size[0])[:, None]
        yield np.bincount(flat.ravel(), minlength=size[0] * count).reshape(size)[:, index].astype(np.float64)


def resample(
    metrics: Mapping[Key, Metric],
    lesions: NDArray[np.object_],
    *,
    draws: int,
    rng: np.random.Generator,
) -> dict[Key, Sampled]:
    """Bootstrap all metrics on the same draws of lesions, so that they can be averaged and compared.

    Args:
        metrics: of the same N images.
        lesions: (N,) ids.
        draws: how many.
        rng: where the draws come from.
    """
    chunks = [
        {key: metric.weighted(weights) for key, metric in metrics.items()}
        for weights in lesion_weights(lesions, draws=draws, rng=rng)
    ]
    return {
        key: Sampled(
            metric.value,
            np.concatenate([chunk[key] for chunk in chunks]),
            lesions=min((len(np.unique(lesions[side])) for side in metric.behind), default=None),
            is_share=metric.is_share,
            is_biased=metric.is_biased,
        )
        for key, metric in metrics.items()
    }


def estimate(sampled: Sampled) -> Estimate:
    """Value and 95% percentile interval; draws in which the metric is undefined are left out and counted.

    Where all images agree, no draw differs, yet "none of 31 was missed" does not mean that none ever will
    be: the interval of a share of 0 or 1 is then the exact one, each lesion counted once. Other perfect
    metrics, such as an AUROC of 1, get none; nor does what fewer than `LEAST_DRAWN` lesions stand behind.
    What resampling adds to a calibration error is taken off its interval.

    Source: Clopper and Pearson, The use of confidence or fiducial limits, 1934; Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993, sections 10.6 and 13.3.
    """
    defined = sampled.draws[~np.isnan(sampled.draws)]
    left_out = len(sampled.draws) - len(defined)
    nothing = Estimate(sampled.value, None, None, left_out)
    if sampled.value is None:
        return nothing
    if sampled.interval is not None:
        return Estimate(sampled.value, *sampled.interval, left_out)
    if sampled.is_share and sampled.value in (0, 1) and sampled.lesions:
        all_agree = 0.025 ** (1 / sampled.lesions)
        ends = (all_agree, 1.0) if sampled.value else (0.0, 1 - all_agree)
        return Estimate(sampled.value, ends[0], ends[1], left_out)
    is_mean = sampled.classes is not None  # of classes, of which the others still tell something
    few = not is_mean and sampled.lesions is not None and sampled.lesions < LEAST_DRAWN
    if not len(defined) or few:
        return nothing
    low, high = np.percentile(defined, [2.5, 97.5])
    if low == high and sampled.value in (0, 1):
        return nothing
    if sampled.is_biased:
        low, high = np.maximum(np.array([low, high]) - (defined.mean() - sampled.value), 0)
    return Estimate(sampled.value, float(low), float(high), left_out)


_AREAS = {"auroc": auroc, "average_precision": average_precision, "partial_auroc": partial_auroc}
_RATES = {"sensitivity": sensitivity, "specificity": specificity, "ppv": ppv, "npv": npv}


def measure(
    predictions: Predictions,
    points: Sequence[OperatingPoint],
    *,
    draws: int,
    rng: np.random.Generator,
    prevalence: Mapping[str, float] = MappingProxyType({}),
) -> dict[tuple[str, ...], Sampled]:
    """Every metric, as (name,), (name, class or `malignant` or `macro`) or (name, operating point).

    Args:
        predictions: of N images.
        points: thresholds to act at.
        draws: how many draws of lesions stand behind each interval.
        rng: where they come from.
        prevalence: by a point's target, its share among lesions where the model is to be used.
    """
    probabilities, labels, named = predictions.probabilities, predictions.labels, predictions.named
    metrics: dict[tuple[str, ...], Metric] = {
        ("accuracy",): accuracy(named, labels),
        ("brier",): brier(probabilities, labels),
        ("ece",): expected_calibration_error(probabilities, labels),
        ("ece_classwise",): classwise_calibration_error(probabilities, labels),
        ("nll",): negative_log_likelihood(probabilities, labels),
    }
    for column, name in enumerate(predictions.classes):
        metrics["recall", name] = recall(named, labels, column)
        metrics["f1", name] = f1(named, labels, column)
    for name in (*predictions.classes, *([MALIGNANT] if any(predictions.malignant) else [])):
        for key, area in _AREAS.items():
            metrics[key, name] = area(*predictions.of(name))
    for point in points:
        for key, rate in _RATES.items():
            metrics[key, point.name] = rate(*predictions.of(point.target), point.threshold)
    sampled = resample(metrics, predictions.drawn, draws=draws, rng=rng)
    for point in points:
        if point.target in prevalence:
            found, spared = (sampled[key, point.name] for key in ("sensitivity", "specificity"))
            values = at_prevalence(found, spared, prevalence[point.target])
            sampled["ppv_at_prevalence", point.name], sampled["npv_at_prevalence", point.name] = values

    for metric, mean in _MACRO_MEANS.items():
        sampled[mean] = macro([sampled[metric, name] for name in predictions.classes])
    return sampled


def headline(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """The few values that experiments are compared by, of what metrics.json holds."""
    named = {
        "auroc_macro": metrics["auroc"]["macro"],
        "average_precision_macro": metrics["average_precision"]["macro"],
        "balanced_accuracy": metrics["balanced_accuracy"],
    }
    if MALIGNANT in metrics["auroc"]:
        named["auroc_malignant"] = metrics["auroc"][MALIGNANT]
    for point in metrics["threshold"]:
        named |= {f"{name}_{point}": metrics[name][point] for name in ("sensitivity", "specificity")}
    named |= {"brier": metrics["brier"], "calibration_error": metrics["ece"]}
    return {name: metric["value"] for name, metric in named.items()}


def summarize(
    predictions: Predictions,
    points: Sequence[OperatingPoint],
    measured: Mapping[tuple[str, ...], Sampled],
) -> dict[str, Any]:
    """What metrics.json holds: {metric: {class: {value, low, high}}}, rounded so that a diff reads well.

    `undefined` counts, for each metric, the classes that its macro mean lacks and the most draws that any
    of its intervals lacks.
    """
    tree: dict[str, Any] = {
        "n_images": len(predictions.labels),
        "n_lesions": len(np.unique(predictions.lesions)),
    }
    undefined: dict[str, dict[str, int]] = {}
    for (metric, *scope), sampled in sorted(measured.items()):
        found = estimate(sampled)
        if scope:
            tree.setdefault(metric, {})[scope[0]] = _rounded(found)
        else:
            tree[metric] = _rounded(found)
        counts = undefined.setdefault(metric, {"draws": 0})
        counts["draws"] = max(counts["draws"], found.left_out)
        if sampled.classes is not None:
            counts["classes"] = len(predictions.classes) - sampled.classes
    tree["threshold"] = {point.name: round(point.threshold, _DIGITS) for point in points}
    return tree | {"undefined": undefined}


def _rounded(found: Estimate) -> dict[str, Any]:
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    rounded = {name: None if number is None else round(number, _DIGITS) for name, number in numbers.items()}
    return rounded if found.value is not None else {**rounded, "reason": _UNDEFINED}


def top_label(probabilities: Floats, labels: Labels) -> tuple[Floats, Bools]:
    """The probability of the most probable class (N,), and whether it is the right one (N,)."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def reliability_table(
    scores: Floats,
    outcomes: Bools,
    lesions: NDArray[np.object_],
    *,
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Of images that were given about this probability, how many were so: one row a bin that holds any.

    Columns: `low, high` (the bin), `n`, `predicted` (mean score), `observed` (share), `observed_low,
    observed_high` (95% interval).
    """
    bins = _bin(scores)
    held = [int(b) for b in np.unique(bins)]
    observed = resample({b: share(outcomes, bins == b) for b in held}, lesions, draws=draws, rng=rng)
    rows = []
    for b in held:
        found = estimate(observed[b])
        rows.append(
            {
                "low": b / BINS,
                "high": (b + 1) / BINS,
                "n": int((bins == b).sum()),
                "predicted": scores[bins == b].mean(),
                "observed": found.value,
                "observed_low": found.low,
                "observed_high": found.high,
            }
        )
    return pd.DataFrame(rows)


def roc_table(predictions: Predictions) -> pd.DataFrame:
    """ROC curves: `class, fpr, tpr, threshold`, for each class in which both rates are defined."""

    def curve(scores: Floats, positive: Bools) -> dict[str, Floats]:
        fpr, tpr, thresholds = roc_curve(positive, scores)
        return {"fpr": fpr, "tpr": tpr, "threshold": np.minimum(thresholds, 1)}  # the first is infinite

    named = ((name, *predictions.of(name)) for name in predictions.classes)
    found = ((name, curve(scores, positive)) for name, scores, positive in named if 0 < positive.mean() < 1)
    return _stack(found, ["class", "fpr", "tpr", "threshold"])


def pr_table(predictions: Predictions) -> pd.DataFrame:
    """Precision-recall curves: `class, recall, precision, threshold`, for each class that occurs."""

    def curve(scores: Floats, positive: Bools) -> dict[str, Floats]:
        precision, found, thresholds = precision_recall_curve(positive, scores, drop_intermediate=True)
        return {"recall": found, "precision": precision, "threshold": np.append(thresholds, 1)}

    named = ((name, *predictions.of(name)) for name in predictions.classes)
    found = ((name, curve(scores, positive)) for name, scores, positive in named if positive.any())
    return _stack(found, ["class", "recall", "precision", "threshold"])


def _stack(curves: Iterable[tuple[str, dict[str, Floats]]], columns: list[str]) -> pd.DataFrame:
    tables = [pd.DataFrame({"class": name, **curve})[columns] for name, curve in curves]
    return pd.concat(tables, ignore_index=True).round(_DIGITS) if tables else pd.DataFrame(columns=columns)


def _bin(scores: Floats) -> Labels:
    return np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)


def _running_sum(weights: Floats) -> Floats:
    """(D, n) to (D, n + 1): the sum of the first 0, 1, …, n weights of each row."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _equally_full(scores: Floats) -> Labels:
    """The bin of each score (N,), each bin holding as many as the others; scores that tie share one."""
    edges = np.quantile(scores, np.arange(1, BINS) / BINS)
    bins: Labels = np.searchsorted(edges, scores, "right").astype(np.int64)
    return bins


def _only(weighted: Callable[[Floats], Floats], count: int) -> float | None:
    return float(weighted(np.ones((1, count)))[0]) if count else None
