"""Turn logits into honest probabilities; fitted on validation only."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax
from sklearn.isotonic import IsotonicRegression

from dermtune.errors import DataError
from dermtune.goals import Method

KNOTS = 32
"""Of each class's curve, where there are curves."""
_LOG_BOUNDS = (np.log(0.02), np.log(50.0))  # a network outside is broken, not merely miscalibrated
_RIDGE = 1e-3  # of vector scaling: a class of ten images must not be scaled without bounds
_LEAST = 1e-4  # probability that a curve gives: nothing is impossible


@dataclass(frozen=True)
class Calibrator:
    """From logits to probabilities: scaled, shifted, through a softmax, and for each class along a curve."""

    scale: NDArray[np.float64]
    """(K,)"""
    shift: NDArray[np.float64]
    """(K,)"""
    given: NDArray[np.float64] | None = None
    """(K, KNOTS), rising: where the softmax gives this …"""
    found: NDArray[np.float64] | None = None
    """(K, KNOTS): … the probability is that, before all are divided by their sum."""

    def __call__(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """Probabilities (N, K) of logits (N, K)."""
        probabilities = softmax(logits.astype(np.float64) * self.scale + self.shift)
        if self.given is None or self.found is None:
            return probabilities
        curves = zip(probabilities.T, self.given, self.found, strict=True)
        along = np.stack([np.interp(*one) for one in curves], axis=1)
        divided: NDArray[np.float64] = along / along.sum(axis=1, keepdims=True)
        return divided


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Probabilities (N, K) of logits (N, K), which are divided by the temperature first."""
    probabilities: NDArray[np.float64] = scipy_softmax(logits.astype(np.float64) / temperature, axis=1)
    return probabilities


def prior_shift(frequencies: NDArray[np.float64], balance: float) -> NDArray[np.float64]:
    """What to add to the logits (K,) to undo loss weights of `frequencies ** -balance`.

    A network whose loss is weighted learns probabilities times these weights; without them, a rare class
    would be given a probability above its frequency.

    Source: Saerens et al., Adjusting the outputs of a classifier to new a priori probabilities, 2002, eq. 4.
    """
    shift: NDArray[np.float64] = balance * np.log(frequencies)
    return shift


def decision_weights(frequencies: NDArray[np.float64], balance: float) -> NDArray[np.float64]:
    """What each class's probability is multiplied by (K,) when one class must be named; at most 1.

    With `balance` 0 the most probable class is named, which errs least often; with 1 every class's recall
    counts alike: naming the largest p_k / frequency_k makes balanced accuracy highest.

    Source: Menon et al., Long-tail learning via logit adjustment, ICLR 2021, eq. 9.
    """
    weights: NDArray[np.float64] = (frequencies / frequencies.min()) ** -balance
    return weights


def log_loss(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of the right classes, in nats."""
    right = probabilities[np.arange(len(labels)), labels]
    return -float(np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def fit_calibrator(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    *,
    method: Method,
    shift: NDArray[np.float64],
) -> Calibrator:
    """Find the calibrator of a method with the smallest negative log-likelihood (for curves: squared error).

    Args:
        logits: (N, K), of validation images.
        labels: (N,) class indices.
        method: `temperature` keeps the order of a image's classes; `vector` scales and shifts each class;
            `isotonic` gives each class a curve that only rises, which needs many images.
        shift: (K,) added to the logits first.

    Raises:
        DataError: there is no image, or a logit is not finite.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; Zadrozny and Elkan, Transforming
    classifier scores into accurate multiclass probability estimates, KDD 2002.
    """
    if not len(labels):
        raise DataError("calibration: the validation split is empty; re-run ingest with a larger split.val")
    if not np.isfinite(logits).all():
        raise DataError("calibration: a logit is not finite; lower finetune.lr and re-run finetune")
    return _FITS[method](logits.astype(np.float64) + shift, labels, shift)


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """The number to divide logits (N, K) by for the smallest negative log-likelihood of labels (N,)."""

    def nll(log_temperature: float) -> float:
        logs = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return -float(logs[np.arange(len(labels)), labels].mean())

    found = float(minimize_scalar(nll, bounds=_LOG_BOUNDS, method="bounded", options={"xatol": 1e-6}).x)
    return float(np.exp(min((found, 0.0), key=nll)))  # where 1 is already best, the search ends only near it


def _temperature(
    logits: NDArray[np.float64], labels: NDArray[np.int64], shift: NDArray[np.float64]
) -> Calibrator:
    scale = np.full(logits.shape[1], 1 / fit_temperature(logits, labels))
    return Calibrator(scale, shift * scale)


def _vector(logits: NDArray[np.float64], labels: NDArray[np.int64], shift: NDArray[np.float64]) -> Calibrator:
    count, classes = logits.shape
    truth = np.eye(classes)[labels]
    start = np.concatenate([np.full(classes, 1 / fit_temperature(logits, labels)), np.zeros(classes)])

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, bias = np.split(values, 2)
        logs = log_softmax(logits * scale + bias, axis=1)
        errors = (np.exp(logs) - truth) / count
        away = values - start
        gradient = np.concatenate([(errors * logits).sum(axis=0), errors.sum(axis=0)]) + 2 * _RIDGE * away
        return -float((logs * truth).sum() / count) + _RIDGE * float(away @ away), gradient

    scale, bias = np.split(minimize(loss, start, jac=True, method="L-BFGS-B").x, 2)
    return Calibrator(scale, shift * scale + bias)


def _isotonic(
    logits: NDArray[np.float64], labels: NDArray[np.int64], shift: NDArray[np.float64]
) -> Calibrator:
    probabilities = softmax(logits)
    ends = np.linspace(0, 1, KNOTS)
    given, found = np.empty((2, logits.shape[1], KNOTS))
    for column, scores in enumerate(probabilities.T):
        curve = IsotonicRegression(y_min=_LEAST, y_max=1 - _LEAST, out_of_bounds="clip")
        curve.fit(scores, labels == column)
        # knots where the images are; evenly spread, most would lie where a rare class has none
        given[column] = np.interp(ends, np.linspace(0, 1, len(scores)), np.sort(scores))
        given[column, [0, -1]] = 0, 1
        found[column] = curve.predict(given[column])
    return Calibrator(np.ones(logits.shape[1]), shift, given, found)


_Fit = Callable[[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]], Calibrator]
_FITS: dict[Method, _Fit] = {"temperature": _temperature, "vector": _vector, "isotonic": _isotonic}
