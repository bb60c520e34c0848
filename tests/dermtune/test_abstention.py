import numpy as np
import pytest

from dermtune.abstention import flags, measure_flags, risk_coverage
from dermtune.inference import Looked
from dermtune.metrics import Predictions
from dermtune_bundle.manifest import Limits
from dermtune_bundle.quality import Quality

LIMITS = Limits(distance=0.5, sharpness=3.0, darkest=40.0, brightest=220.0, smallest=32, false_alarms=0.05)


def looked(distances: list[float], qualities: list[Quality]) -> Looked:
    count = len(distances)
    nothing = np.full((count, 2), 0.5)
    return Looked(
        nothing, nothing, np.zeros((count, 3)), np.array(distances), np.zeros((count, 2, 2)), qualities
    )


def make(probabilities: np.ndarray, labels: list[int]) -> Predictions:
    ids = np.array([f"L{row}" for row in range(len(labels))], dtype=object)
    return Predictions(("mel", "nv"), probabilities, np.array(labels), probabilities.argmax(1), ids)


def test_each_flag_is_counted_and_an_image_once_in_all() -> None:
    good = Quality(9.0, 120.0, 150)
    seen = looked([0.1, 0.9, 0.1, 0.8], [good, good, Quality(1.0, 30.0, 150), Quality(1.0, 120.0, 150)])
    flagged = flags(LIMITS, seen)
    assert flagged.to_numpy().sum(axis=1).tolist() == [0, 1, 2, 2]
    predictions = make(np.full((4, 2), 0.5), [0, 0, 1, 1])
    table = measure_flags(flagged, predictions, draws=200, rng=np.random.default_rng(0)).set_index("reason")
    assert table["images"].to_dict() == {
        "unlike the images that the model knows": 2,
        "blurred": 2,
        "too dark": 1,
        "too bright": 0,
        "too small": 0,
        Limits.ANY: 3,
    }
    assert table.loc[Limits.ANY, "share"] == 0.75
    assert table.loc[Limits.ANY, "share_low"] < 0.75 <= table.loc[Limits.ANY, "share_high"]


def test_the_fewer_are_answered_the_fewer_are_wrong() -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.5, 1, 2000)
    right = rng.random(2000) < chance  # as sure as it is right
    table = risk_coverage(
        make(np.stack([chance, 1 - chance], axis=1), [int(not one) for one in right]),
        draws=100,
        rng=rng,
    )
    assert table["coverage"].iloc[-1] == 1
    assert table["risk"].iloc[-1] == pytest.approx((~right).mean())
    assert table["risk"].iloc[0] < 0.05
    assert table["risk"].iloc[-1] > 0.2
    assert (table["risk_low"] <= table["risk"]).all()
    half = table[table["coverage"] == 0.5].iloc[0]
    surest = np.argsort(-chance)[:1000]
    assert half["risk"] == pytest.approx((~right[surest]).mean())


def test_few_images_have_few_points() -> None:
    table = risk_coverage(
        make(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), [0, 0, 0]),
        draws=100,
        rng=np.random.default_rng(0),
    )
    assert table["images"].tolist() == [1, 2, 3]
    assert table["risk"].tolist() == pytest.approx([0, 0, 1 / 3])
