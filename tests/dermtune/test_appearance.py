from pathlib import Path

import numpy as np
import pytest

from dermtune.appearance import (
    NO_MASK,
    SKIN_TONES,
    appearance,
    lesion_mask,
    pack_mask,
    skin_tone,
    typology_angle,
    unpack_mask,
)
from dermtune_bundle.decode import decode

REAL = Path(__file__).parents[2].parent / "shared/data/ham10000"

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


def test_a_mask_is_kept_in_2_kb_and_comes_back() -> None:
    _, mask = draw(SKINS["tan"], (50, 40, 30))
    packed = pack_mask(mask)
    assert packed.nbytes == NO_MASK.nbytes == 2048
    assert dice(unpack_mask(packed, *mask.shape), mask) > 0.97


def test_a_lesion_whose_outline_is_known_is_not_looked_for() -> None:
    image, _ = draw(SKINS["tan"], (50, 40, 30))
    known = np.zeros(image.shape[:2], bool)
    known[:75] = True
    assert appearance(image, known).lesion_share == pytest.approx(0.5, abs=0.01)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data")
def test_most_real_lesions_are_found_about_where_people_outlined_them() -> None:
    """Half of the estimates overlap well; README says what the others mean for what is painted over."""
    found = []
    for path in sorted((REAL / "images").glob("*.jpg"))[::60]:
        outline = REAL / "masks" / f"{path.stem}_segmentation.png"
        if outline.exists():
            image = decode(path.read_bytes(), name=path.name)
            mask = decode(outline.read_bytes(), name=outline.name)[..., 0] > 127
            found.append(dice(lesion_mask(image), mask))
    assert len(found) > 100
    assert np.median(found) > 0.75
    assert np.mean(np.array(found) < 0.5) < 0.25
