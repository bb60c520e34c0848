import numpy as np

from dermtune_bundle.decode import decode
from dermtune_bundle.pictures import overlay, thumbnail, to_jpeg

WHITE = np.full((40, 80, 3), 255, np.uint8)


def test_what_speaks_for_the_class_stays_lit_and_the_rest_goes_dark() -> None:
    lit = overlay(WHITE, np.array([[2.0, -5.0]]))
    assert lit.shape == WHITE.shape
    assert (lit[:, 0] == 255).all()
    assert (lit[:, -1] == 63).all()
    assert (overlay(WHITE, np.array([[-1.0, 0.0]])) == 63).all(), "nothing speaks for it"


def test_a_thumbnail_keeps_its_shape_and_is_never_larger() -> None:
    assert thumbnail(WHITE, 20).shape == (10, 20, 3)
    assert thumbnail(WHITE, 200).shape == WHITE.shape


def test_a_jpeg_is_read_again() -> None:
    assert np.array_equal(decode(to_jpeg(WHITE), name="x"), WHITE)
