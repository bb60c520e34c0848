from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from dermtune.errors import DataError
from dermtune.inference import Looked
from dermtune.limits import choose_limits, references_of
from dermtune_bundle.quality import Quality

FEATURES = 16


def make(count: int, seed: int, *, away: float = 0.0) -> Looked:
    """Embeddings around one direction, or around another."""
    rng = np.random.default_rng(seed)
    middle = np.eye(FEATURES)[0] * (1 - away) + np.eye(FEATURES)[1] * away
    embeddings = (middle + rng.normal(0, 0.1, (count, FEATURES))).astype(np.float32)
    qualities = [
        Quality(*one, 150) for one in zip(rng.normal(8, 1, count), rng.normal(150, 20, count), strict=True)
    ]
    nothing = np.full((count, 2), 0.5)
    return Looked(nothing, nothing, embeddings, np.zeros(count), np.zeros((count, 2, 2)), qualities)


def table(count: int, *, images: int = 1) -> pd.DataFrame:
    return pd.DataFrame({"group_id": [f"G{row // images}" for row in range(count)]})


def distances(seen: Looked, reference: np.ndarray) -> np.ndarray:
    """As the graph takes them."""
    unit = seen.embeddings / np.linalg.norm(seen.embeddings, axis=1, keepdims=True)
    return 1 - np.sort(unit @ reference, axis=1)[:, -5]


def flagged(seen: Looked, count: int = 2000) -> float:
    limits, reference = choose_limits(make(count, 1), table(count), false_alarms=0.05)
    pairs = zip(distances(seen, reference), seen.qualities, strict=True)
    return float(np.mean([bool(limits.reasons(distance, quality)) for distance, quality in pairs]))


def test_of_usual_images_few_are_flagged_and_of_others_nearly_all() -> None:
    assert flagged(make(4000, 2)) == pytest.approx(0.05, abs=0.015)
    assert flagged(make(500, 3, away=0.7)) > 0.95


def test_images_of_one_lesion_do_not_make_each_other_usual() -> None:
    """Ten images of each lesion: held against its own, each would be nearer than any new one."""
    lesions = make(150, 1).embeddings
    rng = np.random.default_rng(5)
    embeddings = (np.repeat(lesions, 10, axis=0) + rng.normal(0, 0.001, (1500, FEATURES))).astype(np.float32)
    seen = replace(make(1500, 2), embeddings=embeddings)
    limits, reference = choose_limits(seen, table(1500, images=10), false_alarms=0.05)
    new = distances(make(3000, 9), reference)
    assert (new > limits.distance).mean() < 0.06


def test_references_are_spread_evenly_and_not_too_many() -> None:
    assert references_of(table(7)).tolist() == list(range(7))
    many = references_of(table(100_000))
    assert len(many) == len(set(many)) == 1500
    assert (many[0], many[-1]) == (0, 99_999)


def test_too_few_lesions_are_said() -> None:
    with pytest.raises(DataError, match="4 validation lesions are too few to know what is usual"):
        choose_limits(make(40, 1), table(40, images=10), false_alarms=0.05)


def test_of_few_images_the_limits_are_the_furthest_that_were_seen() -> None:
    seen = make(60, 4)
    limits, _ = choose_limits(seen, table(60), false_alarms=0.05)
    assert limits.sharpness == min(one.sharpness for one in seen.qualities)
    assert limits.brightest == max(one.brightness for one in seen.qualities)
