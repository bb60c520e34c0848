"""Small movements of the camera, which change nothing of a lesion: by pixels, by degrees, by per cent.

Source: Azulay and Weiss, Why do deep convolutional networks generalize so poorly to small image
transformations? JMLR 20, 2019.
"""

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from dermtune_bundle.decode import resize

Pixels = NDArray[np.uint8]  # (H, W, 3)
DIRECTIONS: Final = ((1, 0), (-1, 0), (0, 1), (0, -1))


def shift(pixels: Pixels, size: int, margin: int, by: tuple[int, int]) -> Pixels:
    """Embed an image, made a little smaller, in its own mirrored borders, whole pixels off the middle.

    No pixel is interpolated anew: between two shifts only the place differs, and what the frame cuts off.

    Args:
        pixels: uint8 (H, W, 3).
        size: side of the frame, that of the network's input.
        margin: width of the frame on each side, in pixels.
        by: pixels to the right and down, at most `margin`.

    Returns:
        uint8 (size, size, 3).
    """
    right, down = by
    inner = resize(pixels, size - 2 * margin)
    around = ((margin + down, margin - down), (margin + right, margin - right), (0, 0))
    return np.pad(inner, around, mode="reflect")


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """Turn an image around its middle; what comes into view is mirrored."""
    return _warp(pixels, degrees, 1.0)


def scale(pixels: Pixels, factor: float) -> Pixels:
    """Bring the camera nearer (above 1) or farther away; what comes into view is mirrored."""
    return _warp(pixels, 0.0, factor)


def _warp(pixels: Pixels, degrees: float, factor: float) -> Pixels:
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, factor)
    warped = cv2.warpAffine(
        pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(warped, np.uint8)
