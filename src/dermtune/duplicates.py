"""Find images that are copies of one another: saved anew, rescaled, brightened, flipped or turned.

An image's print is a small grey picture of it. Prints that correlate nearly perfectly, in any of the eight
flips and turns, are of the same photograph; two photographs of one lesion, or two lesions alike, correlate
less.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dermtune_bundle.decode import resize

SIDE = 48
"""Of a print, in pixels."""
LEAST = 0.99
"""Correlation of prints from which on they are of one photograph; in HAM10000, no two lesions reach it."""
_COARSE, _COARSE_LEAST = 16, 0.97  # a first look, at ninth of the size: the larger print correlates no better
# Of HAM10000's 36 million pairs of images of different lesions, 7 are as alike as this, and none is a copy;
# of its images cropped by 2% a side, nearly all are alike.
_ALIKE_SIMILARITY, _ALIKE_CORRELATION = 0.985, 0.6
_COPY_SIMILARITY, _COPY_CORRELATION = 0.99, 0.8
_BLOCK = 2048  # images compared at once, so that memory does not grow with the square of their number
_SYMMETRIES = 8

Prints = NDArray[np.uint8]


class Alike(NamedTuple):
    """Two images that look alike to a network: crops or turns of one photograph, or lesions much alike."""

    first: int
    second: int
    similarity: float
    """Cosine of what the frozen layers see."""
    correlation: float
    """Of the prints, in the flip or turn in which they agree most."""

    def is_copy(self) -> bool:
        """Is it surely one photograph?"""
        return self.similarity >= _COPY_SIMILARITY and self.correlation >= _COPY_CORRELATION


class Pair(NamedTuple):
    """Two images that are copies."""

    first: int
    second: int
    correlation: float


def make_print(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The print (SIDE, SIDE) of an RGB image, uint8 (H, W, 3)."""
    grey: NDArray[np.uint8] = resize(image, SIDE).mean(axis=2).round().astype(np.uint8)
    return grey


def find_duplicates(prints: Prints, others: Prints | None = None) -> list[Pair]:
    """Pairs of copies among N images, or between N and M others.

    Args:
        prints: (N, SIDE, SIDE).
        others: (M, SIDE, SIDE); None: the same images, each pair once.

    Returns:
        Pairs of rows, in order.
    """
    among = others is None
    others = prints if others is None else others
    found: dict[tuple[int, int], float] = {}
    if not len(prints) or not len(others):
        return []
    for symmetry in range(_SYMMETRIES):
        for first, second in _candidates(_coarse(prints), _coarse(_turn(others, symmetry))):
            if among and first >= second:
                continue
            pair = _unit(prints[first][None]), _unit(_turn(others[second][None], symmetry))
            correlation = float((pair[0] @ pair[1].T)[0, 0])
            if correlation >= LEAST:
                found[first, second] = max(correlation, found.get((first, second), 0))
    return [Pair(*rows, correlation) for rows, correlation in sorted(found.items())]


def find_alike(
    seen: NDArray[np.float32], others: NDArray[np.float32], prints: Prints, other_prints: Prints
) -> list[Alike]:
    """Pairs of N images and M others that look alike, the most alike first.

    Args:
        seen: (N, C), what the frozen layers see, of length one.
        others: (M, C), as well.
        prints: (N, SIDE, SIDE).
        other_prints: (M, SIDE, SIDE).
    """
    found = []
    for start in range(0, len(seen), _BLOCK):
        similarity = seen[start : start + _BLOCK] @ others.T
        for row, column in np.argwhere(similarity >= _ALIKE_SIMILARITY).tolist():
            own = _unit(prints[start + row][None])
            turned = [_unit(_turn(other_prints[column][None], one)) for one in range(_SYMMETRIES)]
            correlation = max(float((own @ one.T)[0, 0]) for one in turned)
            if correlation >= _ALIKE_CORRELATION:
                found.append(Alike(start + row, column, float(similarity[row, column]), correlation))
    return sorted(found, key=lambda pair: -pair.similarity)


def _candidates(one: NDArray[np.float32], other: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    for start in range(0, len(one), _BLOCK):
        rows, columns = np.nonzero(one[start : start + _BLOCK] @ other.T >= _COARSE_LEAST)
        yield from zip((rows + start).tolist(), columns.tolist(), strict=True)


def _coarse(prints: Prints) -> NDArray[np.float32]:
    factor = SIDE // _COARSE
    return _unit(prints.reshape(-1, _COARSE, factor, _COARSE, factor).mean(axis=(2, 4)))


def _unit(prints: NDArray[np.number]) -> NDArray[np.float32]:
    """Rows of mean 0 and length 1, whose products are correlations; of a blank print, zeros."""
    rows = prints.reshape(len(prints), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


def _turn(prints: Prints, symmetry: int) -> Prints:
    """One of the eight flips and turns."""
    turned = prints[:, ::-1] if symmetry & 1 else prints
    turned = turned[:, :, ::-1] if symmetry & 2 else turned
    return turned.transpose(0, 2, 1) if symmetry & 4 else turned
