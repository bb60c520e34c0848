import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from dermtune.sources.synthetic import synthetic
from dermtune.studies.corruptions import CORRUPTIONS, Corruption, corrupt, generator
from dermtune_bundle.decode import decode, resize

BY_NAME = {one.name: one for one in CORRUPTIONS}
DRAWS_NOTHING = {"defocus", "jpeg"}
every = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=list(BY_NAME))


@pytest.fixture(scope="module")
def lesions() -> list[tuple[str, NDArray[np.uint8]]]:
    """Photographs of other shapes and sizes, with what they are called."""
    drawn = [(one.image_id, decode(one.content(), name=one.image_id)) for one in synthetic(lesions=7, seed=3)]
    (first, wide), (second, other), (third, square) = drawn[:3]
    return [(first, wide), (second, np.ascontiguousarray(np.rot90(other))), (third, resize(square, 96))]


@every
def test_damage_grows_with_severity(
    corruption: Corruption, lesions: list[tuple[str, NDArray[np.uint8]]]
) -> None:
    for image_id, pixels in lesions:
        seen = [corrupt(pixels, corruption, severity, image_id=image_id, seed=1) for severity in range(6)]
        assert all(one.shape == pixels.shape and one.dtype == np.uint8 for one in seen)
        damage = [float(np.abs(one.astype(int) - pixels).mean()) for one in seen]
        assert damage[0] == 0
        assert (np.diff(damage) > 0).all(), damage
        assert damage[1] < 25, "mild"


@every
def test_draws_depend_on_image_and_seed_alone(
    corruption: Corruption, lesions: list[tuple[str, NDArray[np.uint8]]]
) -> None:
    def changed(image_id: str, seed: int) -> NDArray[np.uint8]:
        return corrupt(lesions[0][1], corruption, 3, image_id=image_id, seed=seed)

    one = changed("A", 1)
    np.testing.assert_array_equal(one, changed("A", 1))
    others = [changed("A", 2), *(changed(image_id, 1) for image_id in "BCDEFGHIJ")]
    assert any(not np.array_equal(one, other) for other in others) == (corruption.name not in DRAWS_NOTHING)


@pytest.mark.parametrize("name", ["hair", "ink", "bubbles"])
def test_what_lies_on_the_skin_stays_where_it_is_and_more_comes(name: str) -> None:
    skin = np.full((150, 200, 3), (210, 160, 140), np.uint8)
    touched = [
        (corrupt(skin, BY_NAME[name], severity, image_id="A", seed=1) != skin).any(axis=2)
        for severity in range(6)
    ]
    for milder, worse in itertools.pairwise(touched):
        assert not (milder & ~worse).any()
        assert worse.sum() > milder.sum()


def test_exposure_is_in_stops_of_light() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    for image_id in "ABCD":
        seen = corrupt(grey, BY_NAME["exposure"], 5, image_id=image_id, seed=1)
        assert int(seen[0, 0, 0]) in {round(100 * 2 ** (sign * 1.7 / 2.2)) for sign in (-1, 1)}


def test_grey_holds_no_pigment_and_brown_does() -> None:
    grey, brown = np.full((8, 8, 3), 120, np.uint8), np.full((8, 8, 3), (150, 100, 70), np.uint8)
    np.testing.assert_array_equal(corrupt(grey, BY_NAME["stain"], 5, image_id="A", seed=1), grey)
    assert (corrupt(brown, BY_NAME["stain"], 5, image_id="A", seed=1) != brown).any()


@pytest.mark.parametrize("name", ["motion_blur", "defocus"])
def test_blur_spreads_light_and_loses_none(name: str) -> None:
    point = np.zeros((101, 101, 3), np.float32)
    point[50, 50] = 1
    spread = [BY_NAME[name].change(point, severity, generator(1, "A")) for severity in (1, 3, 5)]
    for light in spread:
        assert light.sum() == pytest.approx(3, rel=1e-4)
        rows, columns = np.nonzero(light[..., 0])
        assert (rows.mean(), columns.mean()) == pytest.approx((50, 50))
    peaks = [light.max() for light in spread]
    assert peaks == sorted(peaks, reverse=True)


def test_there_are_five_severities() -> None:
    with pytest.raises(ValueError, match="severity 6"):
        corrupt(np.zeros((8, 8, 3), np.uint8), CORRUPTIONS[0], 6, image_id="A", seed=1)
