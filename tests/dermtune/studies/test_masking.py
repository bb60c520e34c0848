import numpy as np
import pytest

from dermtune.studies.masking import more_is_never_less, nothing_stands, slack, weaker_does_not_win


def still(count: int, of: int = 20) -> np.ndarray:
    return np.arange(of) < count


@pytest.mark.parametrize(("images", "allowed"), [(1, 1), (20, 1), (39, 1), (40, 2), (100, 5)])
def test_one_image_or_one_in_twenty_may_go_the_wrong_way(images: int, allowed: int) -> None:
    assert slack(images) == allowed


@pytest.mark.parametrize(
    ("counts", "passed"), [((15, 9, 3), "yes"), ((15, 9, 10), "yes"), ((15, 8, 10), "no"), ((3, 9, 0), "no")]
)
def test_more_steps_that_help_the_model_are_told(counts: tuple[int, ...], passed: str) -> None:
    right = dict(zip((1.0, 7.0, 28.0), map(still, counts), strict=True))
    check = more_is_never_less("steps", "{} steps", right)
    assert check.passed is (passed == "yes")
    assert check.found.startswith(f"still right with 1 steps: {counts[0]} of 20, 7 steps: {counts[1]} of 20")


def test_a_weaker_attack_that_fells_what_the_stronger_leaves_is_told() -> None:
    words = ("the weak", "the strong")
    fine = weaker_does_not_win("x", words, [(1, still(18), still(4)), (2, still(9), still(0))], unit="{}/255")
    assert fine.passed
    blunt = weaker_does_not_win(
        "x", words, [(1, still(18), still(4)), (2, still(9), still(12))], unit="{}/255"
    )
    assert not blunt.passed
    assert blunt.found == (
        "images of 20 that the weak fells and the strong does not, at 1/255: 0, 2/255: 3; it leaves 4, 12"
    )


def test_images_that_survive_any_change_are_told() -> None:
    assert nothing_stands("x", "at 128/255", still(1)).passed
    assert not nothing_stands("x", "at 128/255", still(2)).passed
