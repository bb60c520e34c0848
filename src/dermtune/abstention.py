"""What it costs and brings that the model does not answer everything."""

import numpy as np
import pandas as pd

from dermtune.inference import Looked
from dermtune.metrics import Bools, Predictions, estimate, resample, share
from dermtune_bundle.manifest import Limits

_STEPS = 20  # of the curve


def flags(limits: Limits, seen: Looked) -> pd.DataFrame:
    """Which images the model abstains on, and why: a row an image, a column a reason, True or False."""
    pairs = zip(seen.distances, seen.qualities, strict=True)
    reasons = [limits.reasons(float(distance), quality) for distance, quality in pairs]
    return pd.DataFrame({reason: [reason in one for one in reasons] for reason in Limits.REASONS})


def measure_flags(
    flagged: pd.DataFrame, predictions: Predictions, *, draws: int, rng: np.random.Generator
) -> pd.DataFrame:
    """How many images the model abstains on: `reason, images, share, share_low, share_high`.

    Args:
        flagged: as `flags` gives it.
        predictions: of the same images.
        draws: how many draws of lesions stand behind each interval.
        rng: where they come from.
    """
    everything = np.ones(len(flagged), bool)
    columns: dict[str, Bools] = {str(reason): flagged[reason].to_numpy(bool) for reason in flagged}
    columns[Limits.ANY] = np.any(flagged.to_numpy(bool), axis=1)
    metrics = {reason: share(values, everything) for reason, values in columns.items()}
    sampled = resample(metrics, predictions.drawn, draws=draws, rng=rng)
    rows = []
    for reason, values in columns.items():
        found = estimate(sampled[reason])
        row = {"reason": reason, "images": int(values.sum()), "share": found.value}
        rows.append(row | {"share_low": found.low, "share_high": found.high})
    return pd.DataFrame(rows)


def risk_coverage(predictions: Predictions, *, draws: int, rng: np.random.Generator) -> pd.DataFrame:
    """How often the class named is wrong, of the images that the model is surest of.

    Columns: `coverage` (share of the images that are answered, the surest first), `images`, `risk` (share of
    them that is wrong), `risk_low, risk_high`.

    Source: Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, NeurIPS 2017.
    """
    count = len(predictions.labels)
    sureness = predictions.probabilities[np.arange(count), predictions.named]
    rank = np.empty(count, np.int64)
    rank[np.argsort(-sureness, kind="stable")] = np.arange(count)
    kept = sorted({max(1, round(step / _STEPS * count)) for step in range(1, _STEPS + 1)})
    wrong: Bools = predictions.named != predictions.labels
    sampled = resample(
        {images: share(wrong, rank < images) for images in kept}, predictions.drawn, draws=draws, rng=rng
    )
    rows = []
    for images in kept:
        found = estimate(sampled[images])
        row = {"coverage": images / count, "images": images, "risk": found.value}
        rows.append(row | {"risk_low": found.low, "risk_high": found.high})
    return pd.DataFrame(rows)
