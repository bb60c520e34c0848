import numpy as np
import pytest

from dermtune.augmentation import Variation, make_views
from dermtune_bundle.decode import resize

ALL = Variation(min_scale=0.5, color=0.15, hue=0.03, rotate=180)
NONE = Variation(min_scale=1.0, color=0.0, hue=0.0, rotate=0)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Bright at the top left, dark at the bottom right, with some texture."""
    rows, columns = np.mgrid[0:90, 0:120]
    ramp = 200 - rows - columns / 2 + 20 * np.sin(rows / 3)
    return np.stack([ramp, ramp * 0.7, ramp * 0.6], axis=2).astype(np.uint8)


def test_views_have_the_size_asked_for_and_differ(image: np.ndarray) -> None:
    views = make_views(image, ALL, views=4, image_id="a", size=32, seed=1)
    assert views.shape == (4, 32, 32, 3)
    assert views.dtype == np.uint8
    assert len({view.tobytes() for view in views}) == 4


def test_a_view_depends_on_seed_id_and_number_alone(image: np.ndarray) -> None:
    four = make_views(image, ALL, views=4, image_id="a", size=32, seed=1)
    make_views(image, ALL, views=3, image_id="other", size=32, seed=9)
    assert np.array_equal(four[:2], make_views(image, ALL, views=2, image_id="a", size=32, seed=1))
    assert not np.array_equal(four, make_views(image, ALL, views=4, image_id="b", size=32, seed=1))
    assert not np.array_equal(four, make_views(image, ALL, views=4, image_id="a", size=32, seed=2))


def test_without_variation_a_view_is_the_resized_image_up_to_symmetry(image: np.ndarray) -> None:
    plain = resize(image, 32)
    turned = [np.rot90(flipped, turns) for flipped in (plain, plain[:, ::-1]) for turns in range(4)]
    for view in make_views(image, NONE, views=8, image_id="a", size=32, seed=1):
        difference = min(np.abs(view.astype(int) - other).max() for other in turned)
        assert difference <= 2  # ColorJitter's round trip through HSV


def test_views_keep_to_the_image(image: np.ndarray) -> None:
    """Nothing is filled with black, and colours change no more than asked for."""
    views = make_views(image, ALL, views=16, image_id="a", size=32, seed=1)
    assert views.min() >= 0.5 * image.min()
    assert np.ptp(views.mean((1, 2, 3))) > 5, "brightness varies"


def test_min_scale_bounds_how_much_a_crop_leaves_out(image: np.ndarray) -> None:
    tiny = Variation(min_scale=0.05, color=0, hue=0, rotate=0)
    contrast = [
        np.mean([view.std() for view in make_views(image, way, views=12, image_id="a", size=32, seed=1)])
        for way in (tiny, NONE)
    ]
    assert contrast[0] < contrast[1]
