import numpy as np
import pytest

from dermtune.appearance import SKIN_TONES, appearance, lesion_mask, skin_tone, typology_angle

SKINS = {"very light": (240, 205, 190), "tan": (175, 130, 100), "dark": (75, 50, 40)}


Color = tuple[int, int, int]


def draw(
    skin: Color, lesion: Color, *, radius: float = 0.2, tube: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A round lesion on plain skin, 150 x 200 pixels, and its mask; a tube darkens the corners."""
    height, width = 150, 200
    y, x = np.mgrid[:height, :width]
    mask = ((y - 70) / height) ** 2 + ((x - 110) / width) ** 2 < radius**2
    image = np.where(mask[..., None], np.uint8(lesion), np.uint8(skin))
    if tube:
        image[((y - 75) / 90) ** 2 + ((x - 100) / 110) ** 2 > 1] = 4
    noise = np.random.default_rng(0).integers(-6, 7, image.shape)
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8), mask


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


@pytest.mark.parametrize("tube", [False, True])
@pytest.mark.parametrize("tone", SKINS)
def test_the_lesion_is_found_and_the_skin_named(tone: str, *, tube: bool) -> None:
    skin = SKINS[tone]
    image, mask = draw(skin, tuple(part // 3 for part in skin), tube=tube)
    assert dice(lesion_mask(image), mask) > 0.9
    found = appearance(image)
    assert found.lesion_share == pytest.approx(mask.mean(), abs=0.03)
    assert skin_tone(found.ita) == tone


def test_a_lesion_lighter_than_the_skin_is_found_too() -> None:
    image, mask = draw((120, 80, 60), (235, 205, 195))
    assert dice(lesion_mask(image), mask) > 0.9


def test_an_image_in_which_little_skin_is_seen_says_nothing_of_it() -> None:
    assert appearance(np.zeros((50, 60, 3), np.uint8)).ita is None


def test_the_angle_is_that_of_chardon() -> None:
    """By hand: L* 70 and b* 15 give atan(20 / 15)."""
    assert typology_angle(70, 15) == pytest.approx(53.13, abs=0.01)
    assert typology_angle(40, 15) == pytest.approx(-33.69, abs=0.01)
    bounds = [55.1, 55.0, 41.0, 28.0, 10.0, -30.0]
    assert [skin_tone(ita) for ita in bounds] == list(SKIN_TONES)
    assert skin_tone(-90.0) == "dark"
