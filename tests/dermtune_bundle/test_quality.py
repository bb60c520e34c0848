from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image

from dermtune_bundle.quality import measure_quality


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return load_sample_image("flower.jpg")


def test_brightness_is_the_mean_grey_level(photo: np.ndarray) -> None:
    assert measure_quality(np.full((50, 80, 3), 200, np.uint8)).brightness == pytest.approx(200)
    assert measure_quality(photo).brightness == pytest.approx(photo.mean(), abs=0.5)


def test_the_more_blurred_the_less_sharp_whatever_the_resolution(photo: np.ndarray) -> None:
    picture = Image.fromarray(photo)
    blurred = [np.asarray(picture.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 4, 10, 30)]
    sharpness = [measure_quality(image).sharpness for image in blurred]
    assert all(one > 1.5 * other for one, other in pairwise(sharpness))
    small = np.asarray(picture.resize((320, 213), Image.Resampling.BOX))
    assert measure_quality(small).sharpness == pytest.approx(sharpness[0], rel=0.15)


def test_a_blank_image_has_no_sharpness() -> None:
    assert measure_quality(np.zeros((10, 10, 3), np.uint8)).sharpness == 0
