"""Turn logits into honest probabilities; fitted on validation only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax

from dermtune.errors import DataError

_LOG_BOUNDS = (np.log(0.02), np.log(50.0))  # a network outside is broken, not merely miscalibrated


@dataclass(frozen=True)
class Temperature:
    """The number that logits are divided by, and what that does to the negative log-likelihood."""

    temperature: float
    nll_before: float
    nll_after: float


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


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Temperature:
    """Find the temperature with the smallest negative log-likelihood; no argmax changes by it.

    Args:
        logits: (N, K), of validation images.
        labels: (N,) class indices.

    Raises:
        DataError: there is no image, or a logit is not finite.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    if not len(labels):
        raise DataError("calibration: the validation split is empty; re-run ingest with a larger split.val")
    if not np.isfinite(logits).all():
        raise DataError("calibration: a logit is not finite; lower finetune.lr and re-run finetune")

    def nll(log_temperature: float) -> float:
        logs = log_softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1)
        return -float(logs[np.arange(len(labels)), labels].mean())

    found = float(minimize_scalar(nll, bounds=_LOG_BOUNDS, method="bounded", options={"xatol": 1e-6}).x)
    best = min((found, 0.0), key=nll)  # where 1 is already best, the search ends only near it
    return Temperature(temperature=float(np.exp(best)), nll_before=nll(0.0), nll_after=nll(best))
