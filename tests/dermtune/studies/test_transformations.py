import numpy as np
import pytest
from numpy.typing import NDArray

from dermtune.studies.transformations import DIRECTIONS, rotate, scale, shift


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("distance", [1, 4])
def test_a_shift_moves_every_pixel_and_changes_none(
    pixels: NDArray[np.uint8], direction: tuple[int, int], distance: int
) -> None:
    right, down = (distance * part for part in direction)
    before, after = shift(pixels, 64, 6, (0, 0)), shift(pixels, 64, 6, (right, down))
    assert before.shape == after.shape == (64, 64, 3)
    inner = slice(6, 58)
    moved = after[6 + down : 58 + down, 6 + right : 58 + right]
    np.testing.assert_array_equal(moved, before[inner, inner])
    assert (after != before).any()


def test_the_frame_mirrors_the_border(pixels: NDArray[np.uint8]) -> None:
    framed = shift(pixels, 64, 6, (0, 0))
    np.testing.assert_array_equal(framed[5], framed[7])
    np.testing.assert_array_equal(framed[:, 0], framed[:, 12])


def test_no_turn_and_no_step_change_nothing(pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(rotate(pixels, 0), pixels)
    np.testing.assert_array_equal(scale(pixels, 1), pixels)


def test_half_a_turn_is_both_flips(pixels: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(rotate(pixels, 180), pixels[::-1, ::-1])


def test_nearer_shows_the_middle_larger() -> None:
    disc = np.zeros((101, 101, 3), np.uint8)
    rows, columns = np.ogrid[-50:51, -50:51]
    disc[np.hypot(rows, columns) < 20] = 255
    larger, smaller = (float((scale(disc, factor) > 127).mean()) for factor in (1.5, 1 / 1.5))
    whole = float((disc > 127).mean())
    assert larger / whole == pytest.approx(2.25, rel=0.03)
    assert smaller / whole == pytest.approx(1 / 2.25, rel=0.05)
