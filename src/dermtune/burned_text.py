"""Letters and digits that a device printed into the pixels: a name, a date, an id."""

import math
from collections.abc import Iterator
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Boxes: TypeAlias = NDArray[np.intp]  # (N, 4): left, top, width, height

_MAX_SIDE: Final = 640  # pixels; a larger image is made smaller first
_CONTRAST: Final = 28  # grey levels between strokes and what is around them
_AROUND: Final = 0.14  # of the shorter side: what is around
_LOWEST: Final = 5  # pixels, of letters
_HIGHEST: Final = 0.12  # of the shorter side, of letters
_WIDEST: Final = 2.2  # of a letter's height: letters that touch are one box
_LEAST: Final = 4  # letters in a row
_SHIFT: Final = 0.15  # of a letter's height, between the feet of letters in a row
_HEIGHTS: Final = (0.62, 1.12)  # of a letter's height, of others in its row
_GAPS: Final = (-0.3, 1.6)  # of a letter's height, between neighbours; a comma and a space are less
_TICK: Final = 0.5  # of its height: as wide at most are a ruler's ticks, and four of five boxes in their row
_MANY: Final = 1000  # boxes of a letter's size: a texture, in which no row tells anything


def has_text(pixels: NDArray[np.uint8]) -> bool:
    """Does the picture seem to bear letters or digits, at least four in an upright row?

    A flag for people to look, no proof: it misses letters that are small, turned, written by hand or of
    little contrast, and at times takes hairs or clods that happen to stand in a row for letters.

    Args:
        pixels: uint8 (H, W, 3), RGB.
    """
    return any(_has_row(_letter_boxes(strokes)) for strokes in _strokes(pixels))


def _strokes(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Masks (h, w) of what stands out of its surroundings.

    Text is white, black or of a pure colour. Of red, green and blue the lowest tells white from skin, and
    black and colours from it; where it is dark already, the highest tells colours.
    """
    factor = math.ceil(max(pixels.shape) / _MAX_SIDE)
    if factor > 1:  # by a whole factor, which is fast
        height, width = (side // factor for side in pixels.shape[:2])
        whole = pixels[: height * factor, : width * factor]
        pixels = np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    red, green, blue = cv2.split(pixels)
    lowest, highest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    reach = round(_AROUND * min(lowest.shape)) | 1
    around, highest_around = cv2.blur(lowest, (reach, reach)), cv2.blur(highest, (reach, reach))
    for strokes, ground in ((lowest, around), (around, lowest), (highest, highest_around)):
        _, mask = cv2.threshold(cv2.subtract(strokes, ground), _CONTRAST, 1, cv2.THRESH_BINARY)
        yield np.asarray(mask, np.uint8)


def _letter_boxes(strokes: NDArray[np.uint8]) -> Boxes:
    """What is joined and as large as a letter may be, from left to right."""
    outlines, tree = cv2.findContours(strokes, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents = tree[0, :, 3] if outlines else np.empty(0, np.intp)  # a hole has one, what is joined has none
    found = [cv2.boundingRect(line) for line, parent in zip(outlines, parents, strict=True) if parent < 0]
    boxes = np.array(found, np.intp).reshape(-1, 4)
    width, height = boxes[:, 2], boxes[:, 3]
    is_letter = (height >= _LOWEST) & (height <= _HIGHEST * min(strokes.shape)) & (width <= _WIDEST * height)
    letters: Boxes = boxes[is_letter]
    return np.asarray(letters[np.argsort(letters[:, 0])])


def _has_row(boxes: Boxes) -> bool:
    """Do enough of the boxes stand beside each other on one line, alike in height?"""
    if not _LEAST <= len(boxes) <= _MANY:
        return False
    left, top, width, height = boxes.T
    foot, own = top + height, height[:, None]
    on_line = np.abs(foot - foot[:, None]) <= np.maximum(1, _SHIFT * own)
    shortest, tallest = _HEIGHTS
    on_line &= (height >= shortest * own - 1) & (height <= tallest * own + 1)
    for letter in np.flatnonzero(on_line.sum(axis=1) >= _LEAST):
        line = np.flatnonzero(on_line[letter])
        gaps = (left[line][1:] - (left + width)[line][:-1]) / height[letter]
        ends = 1 + np.flatnonzero((gaps < _GAPS[0]) | (gaps > _GAPS[1]))
        for row in np.split(line, ends):
            is_long = len(row) >= _LEAST and letter in row
            if is_long and np.quantile(width[row] / height[row], 0.8) > _TICK:
                return True
    return False
