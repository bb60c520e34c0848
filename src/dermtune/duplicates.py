"""Find images that are copies of one another: saved anew, rescaled, brightened, flipped, turned or cropped.

An image's print is a small grey picture of it. A first look compares each print, in its eight flips and
turns, with windows of the other prints that lie near it. What may be a copy is then laid over the other
print as exactly as possible: of one photograph even the small details agree, of two lesions alike, or of
two photographs of one lesion, only the outlines. Whether two images are a pair depends on nothing but their
prints, so that what ingest keeps together is what `leakage` looks for.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermtune.progress import progress

SIDE = 48
"""Of a print, in pixels."""
LEAST = 0.99
"""Correlation of prints from which on they are of one photograph; in HAM10000, no two lesions reach it."""
_LEAST_DETAIL = 0.9
"""As well, of the details of prints laid over one another; in HAM10000, four pairs of two lesion ids do."""
_LEAST_FIRST, _LEAST_MOVED = 0.9, 0.985
"""Agreement in the first look: with a window, and with that window once its ends are moved."""
# Of HAM10000's 36 million pairs of images of different lesions, 7 are as alike as this, and none is a copy;
# of its images cropped by 2% a side, nearly all are alike.
_ALIKE_SIMILARITY, _ALIKE_CORRELATION = 0.985, 0.6
_COPY_SIMILARITY, _COPY_CORRELATION = 0.99, 0.8
_BLOCK = 1024  # images compared at once, so that memory does not grow with the square of their number
_ROWS = 256  # as well, with all others, or all cells
_CELLS, _PROBES = 1024, 24  # of features; near how many a part is looked for
_SYMMETRIES = 8

# Windows of a side, as shares of it, that lie near all those that keep 80% or more; both sides give 36.
_WINDOWS = ((0.015, 0.985), (0.03, 0.915), (0.085, 0.97), (0.015, 0.83), (0.1, 0.9), (0.17, 0.985))
_BOTH = tuple((*down, *across) for down in _WINDOWS for across in _WINDOWS)
_STEP = 0.01  # of a side, by which a window's ends are moved to see how what it shows changes
_FARTHEST = 0.09  # of a side, that an end may lie from the window's
_RIDGE = np.diag(np.array([1e-6, 0.01, 0.01, 0.01, 0.01], np.float32))  # keeps the ends from moving freely
_BLANK = 1e-6  # length of what shows nothing
_WAVES, _FEATURES = 8, 40  # cosine waves a side; what is kept of their 63 products
_DETAIL = (0.5, 1.5)  # pixels of a print: details are what is left between these two blurs
_ECC_BLUR, _ECC_STOP = 5, (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-4)
_ASTRAY = 0.06  # by which the registration may scale or shear a print further

Prints = NDArray[np.uint8]
Floats = NDArray[np.float32]


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
    """Of the whole prints where that is at least LEAST; else of their details, one laid over the other."""


class _Candidate(NamedTuple):
    """A print that may show a window of another."""

    part: int
    whole: int
    symmetry: int
    window: Floats
    """Top, bottom, left and right, as shares of the sides, moved to where they agree most."""


def make_print(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The print (SIDE, SIDE) of an RGB image, uint8 (H, W, 3)."""
    # made smaller by a whole factor first: as good for this, and in a third of the time
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    grey: NDArray[np.uint8] = np.asarray(small).mean(axis=2).round().astype(np.uint8)
    return grey


def find_duplicates(prints: Prints, others: Prints | None = None) -> list[Pair]:
    """Pairs of copies among N images, or between N and M others.

    Args:
        prints: (N, SIDE, SIDE).
        others: (M, SIDE, SIDE); None: the same images, each pair once.

    Returns:
        Pairs of rows, in order.
    """
    found: dict[tuple[int, int], float] = {}
    if others is None:
        for first, second, correlation in _parts(prints, prints):
            if first != second:
                rows = min(first, second), max(first, second)
                found[rows] = max(correlation, found.get(rows, 0))
    else:
        found = {pair[:2]: pair.correlation for pair in _parts(prints, others)}
        for second, first, correlation in _parts(others, prints):
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
    for start in range(0, len(seen), _ROWS):
        similarity = seen[start : start + _ROWS] @ others.T
        for row, column in np.argwhere(similarity >= _ALIKE_SIMILARITY).tolist():
            own = prints[start + row]
            turned = (turn(other_prints[column][None], one)[0] for one in range(_SYMMETRIES))
            correlation = max(_correlate(own, one) for one in turned)
            if correlation >= _ALIKE_CORRELATION:
                found.append(Alike(start + row, column, float(similarity[row, column]), correlation))
    return sorted(found, key=lambda pair: -pair.similarity)


def _parts(parts: Prints, wholes: Prints) -> Iterator[Pair]:
    """Pairs of a print that shows a part of another, or all of it, and that other."""
    if not len(parts) or not len(wholes):
        return
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # noqa: PLC0415

    # A thread a block and none within a product: products are small, and their threads would wait in turns.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        candidates = _candidates(parts, wholes, pool)
        turned = (np.ascontiguousarray(turn(parts[one.part][None], one.symmetry)[0]) for one in candidates)
        there = (wholes[one.whole] for one in candidates)
        found = pool.map(_confirm, turned, there, (one.window for one in candidates))
        both = zip(candidates, found, strict=True)
        for one, correlation in progress(both, "likely copies", len(candidates)):
            if correlation is not None:
                yield Pair(one.part, one.whole, correlation)


def _candidates(parts: Prints, wholes: Prints, pool: ThreadPoolExecutor) -> list[_Candidate]:
    """Each pair that may be copies once, with the flip or turn and the window that agree most."""
    tops, blocks = range(0, len(parts), _BLOCK), range(0, len(wholes), _BLOCK)
    turned = np.concatenate([*pool.map(lambda top: _turned(parts[top : top + _BLOCK]), tops)])
    cells = pool.map(lambda some: _cells(some, _PROBES), np.array_split(turned, len(tops)))
    members = _by_cell(np.concatenate([*cells]).ravel(), every=_PROBES)
    best: dict[tuple[int, int], tuple[float, _Candidate]] = {}
    looks = pool.map(lambda left: _look(turned, members, wholes, left), blocks)
    for found in progress(looks, "copies", len(wholes), step=_BLOCK):
        for agreement, one in found:
            pair = one.part, one.whole
            if pair not in best or agreement > best[pair][0]:
                best[pair] = agreement, one
    return [candidate for _, candidate in best.values()]


def _look(
    turned: Floats, members: list[NDArray[np.int32]], wholes: Prints, left: int
) -> list[tuple[float, _Candidate]]:
    """What agrees with windows of a block of wholes, and how much.

    Only what lies in one cell is compared: of HAM10000 a fifteenth of all, and nearly all that agree.

    Args:
        turned: (N * _SYMMETRIES, _FEATURES), of the parts, as of `_turned`.
        members: of each cell, the rows of `turned` that lie in it or near it.
        wholes: (M, SIDE, SIDE).
        left: where among them the block begins.

    Source: multi-probe locality-sensitive hashing, Lv et al. 2007, VLDB 33, p. 950.
    """
    views = _views(wholes[left : left + _BLOCK])
    units = np.ascontiguousarray(views[:, 0])
    products = views @ views.swapaxes(1, 2)
    found = []
    for cell, places in enumerate(_by_cell(_cells(units, 1).ravel(), every=1)):
        rows, columns = members[cell], places
        if not len(rows) or not len(columns):
            continue
        near, far = np.divmod(np.flatnonzero(turned[rows] @ units[columns].T >= _LEAST_FIRST), len(columns))
        rows, columns = rows[near], columns[far]
        agreement, moves = _move(turned[rows], views[columns], products[columns])
        for at in np.flatnonzero(agreement >= _LEAST_MOVED):
            part, symmetry = divmod(int(rows[at]), _SYMMETRIES)
            whole, window = divmod(int(columns[at]), len(_BOTH))
            ends = np.array(_BOTH[window], np.float32) + moves[at]
            found.append((float(agreement[at]), _Candidate(part, left + whole, symmetry, ends)))
    return found


def _move(parts: Floats, views: Floats, products: Floats) -> tuple[Floats, Floats]:
    """Move each window's ends to where it agrees most with the part, as if what it shows changed evenly.

    Args:
        parts: (N, _FEATURES), of length one.
        views: (N, 5, _FEATURES), as `_views` gives them.
        products: (N, 5, 5), of the views with one another.

    Returns:
        The agreement (N,) there, and how far each end was moved (N, 4).

    Source: tangent distance, Simard et al. 1998, doi 10.1007/3-540-49430-8_13.
    """
    with_part = np.einsum("nvf,nf->nv", views, parts)
    weights = np.linalg.solve(products + _RIDGE, with_part[:, :, None])[:, :, 0]
    moves: Floats = (weights[:, 1:] / np.maximum(weights[:, :1], 0.1)).astype(np.float32)
    squared = np.einsum("nv,nvw,nw->n", weights, products, weights)
    agreement: Floats = (weights * with_part).sum(axis=1) / np.sqrt(np.maximum(squared, _BLANK**2))
    agreement[np.abs(moves).max(axis=1, initial=0) > _FARTHEST] = 0
    return agreement, moves


def _turned(prints: Prints) -> Floats:
    """Features (N * _SYMMETRIES, _FEATURES), of length one, of N prints in each of the flips and turns."""
    waves = _waves(0, 1)
    amounts = waves @ prints.astype(np.float32) @ waves.T
    flipped = (-1.0) ** np.arange(_WAVES, dtype=np.float32)  # a wave is even or odd about the middle
    turned = []
    for symmetry in range(_SYMMETRIES):
        down, across = flipped ** (symmetry & 1), flipped ** (symmetry >> 1 & 1)
        one = amounts * np.outer(down, across)
        turned.append(one.swapaxes(1, 2) if symmetry & 4 else one)
    return _unit(_project(np.stack(turned, axis=1)).reshape(-1, _FEATURES))


def _views(prints: Prints) -> Floats:
    """What each window of N prints shows, and how it changes by each of its four ends.

    Returns:
        (N * 36, 5, _FEATURES), in units of the length of what the window shows.
    """
    starts, ends = np.array(_WINDOWS).T
    waves = _waves(starts, ends)
    by_start = (_waves(starts + _STEP, ends) - _waves(starts - _STEP, ends)) / (2 * _STEP)
    by_end = (_waves(starts, ends + _STEP) - _waves(starts, ends - _STEP)) / (2 * _STEP)
    down = waves.reshape(-1, SIDE) @ prints.astype(np.float32)  # (N, 6 * _WAVES, SIDE)
    pairs = [(down, waves)]
    pairs += [(moved.reshape(-1, SIDE) @ prints.astype(np.float32), waves) for moved in (by_start, by_end)]
    pairs += [(down, by_start), (down, by_end)]
    shape = len(prints), len(_WINDOWS), _WAVES, len(_WINDOWS), _WAVES
    amounts = [(one @ other.reshape(-1, SIDE).T).reshape(shape).swapaxes(2, 3) for one, other in pairs]
    found = np.stack([_project(one).reshape(-1, _FEATURES) for one in amounts], axis=1)
    lengths = np.linalg.norm(found[:, :1], axis=2, keepdims=True)
    views: Floats = np.divide(found, lengths, out=np.zeros_like(found), where=lengths > _BLANK)
    return views


def _by_cell(cells: NDArray[np.uint16], *, every: int) -> list[NDArray[np.int32]]:
    """Of each cell, the rows that lie in it, where a row has so many entries in `cells`."""
    order = np.argsort(cells, kind="stable")
    rows = (order // every).astype(np.int32)
    return np.split(rows, np.cumsum(np.bincount(cells, minlength=_CELLS))[:-1])


def _cells(units: Floats, count: int) -> NDArray[np.uint16]:
    """The cells (N, count) in which N features of length one lie: those of the centres most like them."""
    found = []
    for top in range(0, len(units), _ROWS):
        far = -(units[top : top + _ROWS] @ _centres().T)
        # far quicker than a partition where one is asked for
        nearest = far.argmin(axis=1)[:, None] if count == 1 else np.argpartition(far, count)[:, :count]
        found.append(nearest.astype(np.uint16))
    return np.concatenate(found)


@cache
def _centres() -> Floats:
    """Features (_CELLS, _FEATURES) of windows of drawn pictures, the same for every set of images."""
    rng = np.random.default_rng(1)
    pictures, windows = _clouds(_CELLS, rng), rng.integers(0, len(_BOTH), _CELLS)
    ends = np.array(_BOTH)[windows]
    return _unit(_project(_products(pictures, _waves(*ends[:, :2].T), _waves(*ends[:, 2:].T))))


def _confirm(part: Prints, whole: Prints, window: Floats) -> float | None:
    """The correlation of a part (SIDE, SIDE) and what it shows of the whole; None: they are no copies."""
    unmoved = _correlate(part, whole)
    if unmoved >= LEAST:
        return unmoved
    top, bottom, left, right = window
    start = np.array(
        [[right - left, 0, _offset(left, right)], [0, bottom - top, _offset(top, bottom)]], np.float32
    )
    places = [start]
    with suppress(cv2.error):  # it finds no better place
        _, moved = cv2.findTransformECC(
            part, whole, start.copy(), cv2.MOTION_AFFINE, _ECC_STOP, np.ones_like(whole), _ECC_BLUR
        )
        if np.abs(moved[:, :2] - start[:, :2]).max() <= _ASTRAY:
            places.append(np.asarray(moved, np.float32))
    correlation = max(_correlate(_detail(part), _detail(_seen(whole, place))) for place in places)
    return correlation if correlation >= _LEAST_DETAIL else None


def _seen(whole: Prints, place: Floats) -> Prints:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    seen = cv2.warpAffine(whole, place, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return seen.astype(np.uint8, copy=False)


def _offset(start: float, end: float) -> float:
    """Where the middle of a window's first pixel lies in the whole, in pixels, once it has SIDE pixels."""
    return SIDE * start + (end - start - 1) / 2


def _detail(print_: NDArray[np.number]) -> Floats:
    """What is left of a print without its finest grain, which is noise, and without the lesion's outline."""
    fine, coarse = (cv2.GaussianBlur(print_.astype(np.float32), (0, 0), blur) for blur in _DETAIL)
    detail: Floats = fine - coarse
    return detail


def _project(amounts: Floats) -> Floats:
    """Features (…, _FEATURES) of amounts of waves (…, _WAVES, _WAVES): these tell pictures apart."""
    features: Floats = amounts.reshape(*amounts.shape[:-2], -1)[..., 1:] @ _axes()
    return features


@cache
def _axes() -> Floats:
    """Weights (63, _FEATURES) of waves: sums that tell pictures apart, but hardly a crop from a window near.

    Learnt from drawn pictures, so that they are the same for every set of images.

    Source: linear discriminant analysis, Fisher 1936, doi 10.1111/j.1469-1809.1936.tb02137.x.
    """
    from scipy.linalg import eigh  # noqa: PLC0415 - processes that only make prints need it not

    rng = np.random.default_rng(0)
    pictures = _clouds(1000, rng)
    lengths = rng.uniform(0.8, 1, (2, len(pictures)))
    starts = rng.uniform(0, 1 - lengths)
    ends, windows = np.stack([starts, starts + lengths], axis=2), np.array(_WINDOWS)
    nearest = windows[np.abs(ends[:, :, None] - windows).max(axis=3).argmin(axis=2)]
    crops, near = (
        _unit(_products(pictures, *(_waves(*side.T) for side in sides)).reshape(len(pictures), -1)[:, 1:])
        for sides in (ends, nearest)
    )
    between, within = near.T @ near, (crops - near).T @ (crops - near)
    _, axes = eigh(between, within + 1e-6 * len(pictures) * np.eye(len(within)))
    weights: Floats = axes[:, : -_FEATURES - 1 : -1].astype(np.float32)
    return weights


def _clouds(count: int, rng: np.random.Generator) -> Floats:
    """Pictures (count, SIDE, SIDE) of clouds with a dark blob near the middle."""
    frequency = np.hypot(np.fft.fftfreq(2 * SIDE)[:, None], np.fft.rfftfreq(2 * SIDE))
    frequency[0, 0] = 1
    noise = np.fft.rfft2(rng.standard_normal((count, 2 * SIDE, 2 * SIDE)))
    clouds = np.fft.irfft2(noise / frequency**1.7)[:, :SIDE, :SIDE]
    clouds /= clouds.std(axis=(1, 2), keepdims=True)
    middle, radius = rng.normal(0, 0.12, (count, 2, 1, 1)), np.exp(rng.normal(-0.7, 0.3, (count, 2, 1, 1)))
    grid = np.linspace(-1, 1, SIDE)
    down, across = (grid[:, None] - middle[:, 0]) / radius[:, 0], (grid - middle[:, 1]) / radius[:, 1]
    distance = down**2 + across**2
    drawn: Floats = (clouds - 3 / (1 + np.exp(3 * (distance - 1)))).astype(np.float32)
    return drawn


def _waves(start: float | NDArray[np.float64], end: float | NDArray[np.float64]) -> Floats:
    """Waves (…, _WAVES, SIDE), of which a window of a side shows 0, 1, 2, … half periods; 0 outside."""
    start, end = np.asarray(start)[..., None], np.asarray(end)[..., None]
    edges = np.clip(np.arange(SIDE + 1) / SIDE, start, end)
    share = np.diff(edges) / (end - start)
    phase = ((edges[..., 1:] + edges[..., :-1]) / 2 - start) / (end - start)
    waves = np.cos(np.pi * np.arange(_WAVES)[:, None] * phase[..., None, :]) * share[..., None, :]
    return np.asarray(waves, np.float32)


def _products(pictures: NDArray[np.number], down: Floats, across: Floats) -> Floats:
    """How much of each pair of waves there is in N pictures: (N, _WAVES, _WAVES); the first is their mean."""
    amounts: Floats = down @ pictures.astype(np.float32) @ across.swapaxes(-1, -2)
    return amounts


def _unit(rows: Floats) -> Floats:
    """Rows of length 1; of a blank print, zeros."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Floats = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > _BLANK)
    return unit


def _correlate(one: NDArray[np.number], other: NDArray[np.number]) -> float:
    """Of two pictures; 0 where one is blank."""
    rows = np.stack([one.ravel(), other.ravel()]).astype(np.float32)
    first, second = _unit(rows - rows.mean(axis=1, keepdims=True))
    return float(first @ second)


def turn(images: Prints, symmetry: int) -> Prints:
    """One of the eight flips and turns, 0 to 7 (0: none), of N square images (N, S, S, …); a view of them."""
    turned = images[:, ::-1] if symmetry & 1 else images
    turned = turned[:, :, ::-1] if symmetry & 2 else turned
    return turned.swapaxes(1, 2) if symmetry & 4 else turned
