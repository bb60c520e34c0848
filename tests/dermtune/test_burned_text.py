"""Printed letters and digits are flagged; hairs, rulers, bubbles and dark corners are not."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dermtune.burned_text import has_text
from dermtune.sources.synthetic import synthetic
from dermtune_bundle.decode import decode

REAL = Path(__file__).parents[2].parent / "shared/data"
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "yellow": (255, 255, 0), "green": (0, 255, 0)}
TEXTS = ("Doe, Jane", "MUELLER 1957", "03.11.2024", "ID 4711-08", "Patient 12345")
DEJAVU = Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def plant(pixels: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    """A text in one of four corners, two fonts, four colours, sizes of 5 to 10%: every index another."""
    image = Image.fromarray(pixels)
    size = max(10, round((0.05 + 0.01 * (index % 6)) * min(image.size)))
    font = ImageFont.truetype(DEJAVU, size) if index % 2 else ImageFont.load_default(size=size)
    draw, text, colour = ImageDraw.Draw(image), TEXTS[index % 5], [*COLOURS.values()][index // 2 % 4]
    _, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    x = (3, image.width - 3 - right)[index // 8 % 2]
    y = (3 - top, image.height - 3 - bottom)[index // 16 % 2]
    draw.text((x, y), text, colour, font)
    return np.asarray(image)


@pytest.fixture(scope="module")
def drawn() -> list[NDArray[np.uint8]]:
    """Synthetic images of lesions, with hairs, rulers, bubbles and dark corners."""
    return [decode(image.content(), name="x") for image in synthetic(lesions=50, seed=7)][:128]


def test_few_pictures_without_text_are_flagged(drawn: list[NDArray[np.uint8]]) -> None:
    assert np.mean([has_text(pixels) for pixels in drawn]) <= 0.02


def test_most_planted_texts_are_found(drawn: list[NDArray[np.uint8]]) -> None:
    assert np.mean([has_text(plant(pixels, index)) for index, pixels in enumerate(drawn)]) >= 0.9


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS)
@pytest.mark.parametrize("size", [(200, 150), (640, 480), (1999, 1501)])
def test_text_on_plain_skin_is_found_at_every_size(
    size: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    image = Image.new("RGB", size, (215, 170, 150))
    assert not has_text(np.asarray(image))
    font = ImageFont.load_default(size=0.07 * size[1])
    ImageDraw.Draw(image).text((5, 5), "Doe 1957", colour, font)
    assert has_text(np.asarray(image))


def test_three_letters_are_too_few_to_tell() -> None:
    image = Image.new("RGB", (200, 150), (215, 170, 150))
    ImageDraw.Draw(image).text((5, 5), "R 2", "white", ImageFont.load_default(size=14))
    assert not has_text(np.asarray(image))


def test_a_rulers_ticks_are_no_text() -> None:
    image = Image.new("RGB", (300, 225), (215, 170, 150))
    for mark in range(20):
        ImageDraw.Draw(image).line((10 + 12 * mark, 0, 10 + 12 * mark, 9 if mark % 5 else 14), "black")
    assert not has_text(np.asarray(image))


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data")
def test_on_real_pictures_few_flags_are_false_and_most_texts_found() -> None:
    ham = [*sorted((REAL / "ham10000/images").glob("*.jpg"))[::17]]
    plain = [decode(path.read_bytes(), name=path.name) for path in ham]
    ph2 = [decode(path.read_bytes(), name=path.name) for path in (REAL / "ph2").rglob("*_Image/*.bmp")]
    assert len(plain) > 400
    assert len(ph2) > 90
    assert np.mean([has_text(pixels) for pixels in plain]) <= 0.01
    assert np.mean([has_text(pixels) for pixels in ph2]) <= 0.02
    large = [np.asarray(Image.fromarray(pixels).resize((600, 450))) for pixels in plain[::4]]
    assert np.mean([has_text(plant(pixels, index)) for index, pixels in enumerate(large)]) >= 0.9
