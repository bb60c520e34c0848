import numpy as np
import pytest

from dermtune.metrics import Predictions
from dermtune.shortcuts import activation_inside, lesion_alone, lesion_painted_over, measure_shortcuts

SKIN, LESION, INK = (230, 190, 170), (90, 50, 40), (20, 20, 200)


def draw() -> tuple[np.ndarray, np.ndarray]:
    """A lesion on skin, and an ink mark in a corner; and where the lesion is."""
    y, x = np.mgrid[:120, :160]
    mask = ((y - 60) / 120) ** 2 + ((x - 80) / 160) ** 2 < 0.2**2
    image = np.where(mask[..., None], np.uint8(LESION), np.uint8(SKIN))
    image[5:20, 130:150] = INK
    noise = np.random.default_rng(0).integers(-4, 5, image.shape)
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8), mask


def test_the_lesion_is_painted_over_and_all_else_stays() -> None:
    image, mask = draw()
    painted = lesion_painted_over(image, mask)
    assert np.abs(painted[mask].astype(int) - SKIN).max() < 10
    assert np.array_equal(painted[5:20, 130:150], image[5:20, 130:150])
    assert image[60, 80].astype(int) == pytest.approx(LESION, abs=5), "the image itself stays as it is"


def test_all_but_the_lesion_is_painted_over() -> None:
    image, mask = draw()
    alone = lesion_alone(image, mask)
    assert np.array_equal(alone[mask], image[mask])
    assert np.abs(alone[5:20, 130:150].astype(int) - SKIN).max() < 10


def test_each_variant_is_measured_on_the_same_lesions() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    ids = np.array([f"L{row}" for row in range(200)], dtype=object)

    def predictions(signal: float) -> Predictions:
        score = 1 / (1 + np.exp(-(signal * (labels - 0.5) + rng.normal(0, 1, 200))))
        probabilities = np.stack([1 - score, score], axis=1)
        return Predictions(("nv", "mel"), probabilities, labels, probabilities.argmax(1), ids)

    table = measure_shortcuts(
        {"as it is": predictions(4), "lesion painted over": predictions(0)}, draws=200, rng=rng
    ).set_index("variant")
    assert table.loc["as it is", "auroc_low"] > 0.9
    over = table.loc["lesion painted over"]
    assert over["auroc_low"] < 0.5 < over["auroc_high"]
    assert table.loc["as it is", "balanced_accuracy"] > 0.9


def test_activation_is_counted_where_the_lesion_is() -> None:
    _, mask = draw()
    inside = np.zeros((6, 8))
    inside[2:4, 3:5] = 1
    assert activation_inside(inside, mask) > 0.8
    corner = np.zeros((6, 8))
    corner[0, 7] = 1
    assert activation_inside(corner, mask) < 0.05
    assert np.isnan(activation_inside(-np.ones((6, 8)), mask))
