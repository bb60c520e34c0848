"""Synthetic dermoscopy: lesions drawn with the structures by which dermatologists tell the classes apart.

Terms and their link to diagnoses follow the third consensus conference of the International Dermoscopy
Society (Kittler et al. 2016, doi 10.1016/j.jaad.2015.12.038). An image is light reflected by skin: layers
hold how much melanin and blood lies over each pixel, and absorb as pigments do, multiplying; deep melanin
scatters blue, and fibrosis and keratin white. Lesions are drawn in coordinates of their own, so every view
of a lesion shows the same structures.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from dermtune.sources import SourceImage

WIDTH, HEIGHT = 300, 225
_QUALITY = 92

Layer = NDArray[np.floating]  # (HEIGHT, WIDTH)
Light = NDArray[np.floating]  # (HEIGHT, WIDTH, 3)

# Colours are sRGB in [0, 1]; absorptions are per unit of pigment, fitted by eye to real images.
_PALE = np.array([0.96, 0.88, 0.84], np.float32)
_ABSORPTION = np.array([[0.55, 0.84, 1.05], [0.14, 1.05, 0.78]], np.float32)  # of melanin and of blood
_BLUE = np.array([0.36, 0.41, 0.52], np.float32)
_WHITE = np.array([0.95, 0.90, 0.85], np.float32)
_COARSE = 8  # pixels; blobs of noise larger than this are drawn at half the resolution
_CAPILLARY = 0.015  # width of the finest vessel, in lesion radii
_SPLITS = 3  # train, val and test
_NO_AGE = 0.03  # share of people whose age is not known


@dataclass(frozen=True)
class View:
    """Where the dermatoscope stands: lesion coordinates, in units of the lesion's radius, to pixels."""

    angle: float
    scale: float
    """Pixels per lesion radius."""
    centre: tuple[float, float]

    @cached_property
    def inverse(self) -> tuple[float, float, float, float, float, float]:
        """Rows of the affine map from pixels to lesion coordinates."""
        cos, sin = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        x, y = self.centre
        return cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y

    def pixels(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """From lesion coordinates (N, 2) to pixels (N, 2)."""
        cos, sin = self.scale * math.cos(self.angle), self.scale * math.sin(self.angle)
        placed: NDArray[np.float64] = points @ np.array([[cos, sin], [-sin, cos]]) + self.centre
        return placed

    def sample(self, lattice: Layer, extent: float) -> Layer:
        """See a square lattice that covers lesion coordinates -extent to extent; 0 outside."""
        unit, middle = len(lattice) / (2 * extent), len(lattice) / 2
        coarse = 2 if self.scale > _COARSE * unit else 1  # what is smooth costs a quarter
        a, b, c, d, e, f = (unit * value for value in self.inverse)
        seen = Image.fromarray(lattice).transform(
            (WIDTH // coarse, math.ceil(HEIGHT / coarse)),
            Image.Transform.AFFINE,
            (coarse * a, coarse * b, c + middle, coarse * d, coarse * e, f + middle),
            Image.Resampling.BICUBIC,
        )
        return np.asarray(seen.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) if coarse > 1 else seen)


class Lesion:
    """A lesion under a dermatoscope: its shape, and the layers that structures add to."""

    def __init__(self, rng: Generator, view: View, irregularity: float, softness: float) -> None:
        self.rng = rng  # the lesion's own: what it draws is the same in every view
        self.view = view
        a, b, c, d, e, f = view.inverse
        rows, columns = np.ogrid[:HEIGHT, :WIDTH]
        self.x: Layer = (a * columns + b * rows + c).astype(np.float32)
        self.y: Layer = (d * columns + e * rows + f).astype(np.float32)
        self.depth = self._depth(irregularity)  # 1 in the middle, 0 on the outline, negative outside
        self.body = _step(self.depth, softness)
        self.melanin, self.blood = np.zeros((2, HEIGHT, WIDTH), np.float32)
        # Shares of the light that deep melanin scatters blue, and fibrosis or keratin white.
        self.blue, self.white = np.zeros((2, HEIGHT, WIDTH), np.float32)

    def noise(self, spacing: float, extent: float = 2.5) -> Layer:
        """Smooth noise of mean 0 and deviation near 0.7, with blobs of about `spacing`."""
        size = math.ceil(2 * extent / spacing)
        return self.view.sample(self.rng.standard_normal((size, size), np.float32), extent)

    def cells(self, period: float, disorder: float) -> Layer:
        """A honeycomb: 1 in the middle of each cell, 0 where three cells meet; `disorder` bends it."""
        x = 2 * math.pi / period * self.x + 2 * math.pi * disorder * self.noise(1.7 * period)
        y = 2 * math.pi / period * self.y + 2 * math.pi * disorder * self.noise(1.7 * period)
        half, slant = x / 2, math.sqrt(0.75) * y
        cells: Layer = (np.cos(x) + np.cos(half + slant) + np.cos(half - slant) + 1.5) / 4.5
        return cells

    def scatter(self, count: int, spread: float) -> NDArray[np.float64]:
        """Random places (count, 2) within `spread` radii of the middle."""
        radius, angle = spread * np.sqrt(self.rng.random(count)), math.tau * self.rng.random(count)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    def clods(self, places: NDArray[np.float64], radii: NDArray[np.float64], ragged: float) -> Layer:
        """Discs (lesion coordinates) whose outlines noise frays."""
        radii = self.view.scale * radii
        discs = _discs(self.view.pixels(places), radii, 0.5 + 0.35 * ragged * float(radii.mean()))
        fray = ragged * self.noise(0.13) if ragged else 0
        clods: Layer = discs * np.clip(1 + 2 * fray * (1 - discs), 0, 1)
        return clods

    def furrows(self, spacing: float, width: float, extent: float = 2.5) -> Layer:
        """Winding lines of uneven width."""
        furrows: Layer = np.exp(-((self.noise(spacing, extent) / width) ** 2))
        return furrows

    def off_centre(self, spread: float, size: float) -> Layer:
        """1 around a random place that lies off the middle, falling smoothly to 0."""
        (x, y), wobble = self.scatter(1, spread)[0], self.noise(0.3)
        return _step(size - np.hypot(self.x - x, self.y - y) + 0.5 * wobble * size, 0.22)

    def _depth(self, irregularity: float) -> Layer:
        """An ellipse whose radius wanders with the angle, and whose border noise frays."""
        stretch = math.exp(self.rng.normal(0, 0.16))
        angle, radius = np.arctan2(self.y, self.x), np.hypot(self.x * stretch, self.y / stretch)
        outline = np.ones_like(radius)
        for wave in range(2, 8):
            height, phase = self.rng.normal(0, irregularity / wave**0.7), self.rng.uniform(0, math.tau)
            outline += np.float32(height) * np.cos(wave * angle + np.float32(phase))
        frayed = irregularity * (0.5 * self.noise(0.35) + 0.35 * self.noise(0.14))
        depth: Layer = 1 - radius / np.maximum(outline, 0.3) + frayed
        return depth


def _step(value: Layer, softness: float) -> Layer:
    """From 0 to 1 as `value` rises through 0."""
    step: Layer = 1 / (1 + np.exp(np.clip(-value / (softness / 2), -30, 30)))
    return step


def _blot(blur: float, paint: Callable[[ImageDraw.ImageDraw], None]) -> Layer:
    """What `paint` draws at twice the size, smoothed, 0 to 1."""
    canvas = Image.new("L", (2 * WIDTH, 2 * HEIGHT))
    paint(ImageDraw.Draw(canvas))
    return np.asarray(canvas.reduce(2).filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255


def _discs(places: NDArray[np.float64], radii: NDArray[np.float64], blur: float) -> Layer:
    def paint(draw: ImageDraw.ImageDraw) -> None:
        for (x, y), radius in zip(2 * places, 2 * np.maximum(radii, 0.7), strict=True):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)

    return _blot(blur, paint)


def _lines(lines: list[tuple[NDArray[np.float64], float]], blur: float) -> Layer:
    """Polylines, each with a width in pixels."""

    def paint(draw: ImageDraw.ImageDraw) -> None:
        for places, width in lines:
            draw.line([tuple(place) for place in 2 * places], 255, max(1, round(2 * width)), "curve")

    return _blot(blur, paint)


# Structures. Each adds itself to the lesion's layers; `strength` runs from faint (0.3) to textbook (1).


def pigment_network(lesion: Lesion, strength: float) -> None:
    """Thin brown lines that form a regular mesh, fading towards the border."""
    lines = np.clip(1 - lesion.cells(lesion.rng.uniform(0.1, 0.17), 0.2) / 0.5, 0, 1)
    fade = np.clip(1.6 * lesion.depth + 0.35, 0, 1) * np.clip(0.8 + 0.7 * lesion.noise(0.4), 0, 1.4)
    lesion.melanin += 0.9 * strength * fade * lesion.body * (lines - 0.3)


def atypical_network(lesion: Lesion, strength: float) -> None:
    """A mesh with holes of uneven size and lines of uneven width, dark in places, ending abruptly."""
    lines = np.clip(1 - lesion.cells(lesion.rng.uniform(0.18, 0.3), 0.32) / 0.55, 0, 1)
    patchy = np.clip(0.4 + 1.1 * lesion.noise(0.6), 0, 1.6)
    lesion.melanin += 1.3 * strength * patchy * lesion.body * (lines - 0.3)


def delicate_network(lesion: Lesion, strength: float) -> None:
    """A fine light-brown mesh in the periphery."""
    lines = np.clip(1 - lesion.cells(lesion.rng.uniform(0.1, 0.14), 0.2) / 0.5, 0, 1)
    ring = np.exp(-(((lesion.depth - 0.1) / 0.3) ** 2)) * np.clip(0.7 + 0.7 * lesion.noise(0.5), 0, 1.4)
    lesion.melanin += 0.55 * strength * ring * (0.35 + lines)


def globules(lesion: Lesion, strength: float) -> None:
    """Round brown clods of even size, spread evenly."""
    clods = _step(lesion.cells(lesion.rng.uniform(0.15, 0.22), 0.25) - 0.5, 0.25)
    lesion.melanin += 0.9 * strength * lesion.body * (clods - 0.25)


def irregular_globules(lesion: Lesion, strength: float) -> None:
    """Brown to black dots and clods of uneven size, clustered off the middle."""
    count = int(lesion.rng.integers(15, 50))
    places = lesion.scatter(1, 0.6) + lesion.scatter(count, 0.7)
    sizes = 0.025 + 0.08 * lesion.rng.random(count) ** 2.5
    lesion.melanin += 1.3 * strength * lesion.clods(places, sizes, 0.5) * np.sqrt(lesion.body)


def irregular_blotch(lesion: Lesion, strength: float) -> None:
    """A structureless dark area off the middle."""
    lesion.melanin += 1.4 * strength * lesion.off_centre(0.55, lesion.rng.uniform(0.3, 0.5)) * lesion.body


def several_colours(lesion: Lesion, strength: float) -> None:
    """Light brown, dark brown and red areas beside each other."""
    lesion.melanin *= np.exp(0.9 * strength * lesion.noise(0.8))
    lesion.blood += 0.5 * strength * np.clip(lesion.noise(0.7), 0, 1.5) * lesion.body


def blue_white_veil(lesion: Lesion, strength: float) -> None:
    """A confluent blue area under a whitish, ground-glass haze."""
    veil = lesion.off_centre(0.5, lesion.rng.uniform(0.3, 0.6)) * lesion.body
    lesion.blue += 0.65 * strength * veil
    lesion.white += 0.22 * strength * veil * np.clip(0.6 + lesion.noise(0.3), 0, 1)


def regression(lesion: Lesion, strength: float) -> None:
    """A scar-like white area peppered with blue-grey dots."""
    scar = lesion.off_centre(0.6, lesion.rng.uniform(0.25, 0.5)) * lesion.body
    lesion.melanin *= 1 - 0.75 * strength * scar
    lesion.white += 0.3 * strength * scar
    lesion.blue += 0.6 * strength * scar * lesion.clods(lesion.scatter(220, 1.1), np.full(220, 0.018), 0)


def milia_like_cysts(lesion: Lesion, strength: float) -> None:
    """Small round white to yellow dots that seem to glow."""
    sizes = lesion.rng.uniform(0.02, 0.055, lesion.rng.integers(8, 35))
    lesion.white += 0.6 * strength * lesion.clods(lesion.scatter(len(sizes), 0.85), sizes, 0.5) * lesion.body


def comedo_like_openings(lesion: Lesion, strength: float) -> None:
    """Round dark plugs of keratin with sharp edges."""
    sizes = lesion.rng.uniform(0.03, 0.08, lesion.rng.integers(6, 24))
    lesion.melanin += (
        1.4 * strength * lesion.clods(lesion.scatter(len(sizes), 0.85), sizes, 0.4) * lesion.body
    )


def fissures(lesion: Lesion, strength: float) -> None:
    """Dark furrows between ridges that wind as on a brain."""
    furrows = lesion.furrows(0.2, 0.28)
    lesion.melanin += 0.8 * strength * (furrows - 0.1) * lesion.body
    lesion.white += 0.12 * strength * (1 - furrows) * lesion.body


def arborising_vessels(lesion: Lesion, strength: float) -> None:
    """Bright red vessels in focus, with stems that branch into ever finer twigs."""
    twigs = [twig for _ in range(int(lesion.rng.integers(1, 5))) for twig in _tree(lesion)]
    lesion.blood += 0.9 * strength * _lines(twigs, 0.6) * np.clip(1.3 + 1.5 * lesion.depth, 0, 1)


def _tree(lesion: Lesion) -> Iterator[tuple[NDArray[np.float64], float]]:
    """One vessel: twigs in pixels with their widths, from the stem at the border inwards."""
    rng, out = lesion.rng, lesion.rng.uniform(0, math.tau)
    stem = np.array([math.cos(out), math.sin(out)]) * rng.uniform(0.5, 1.1)
    growing = [(stem, out + math.pi + rng.normal(0, 0.5), rng.uniform(0.025, 0.05))]
    while growing:
        place, heading, width = growing.pop()
        headings = heading + np.cumsum(rng.normal(0, 0.35, 8))
        steps = 0.32 * width**0.5 * np.stack([np.cos(headings), np.sin(headings)], axis=1)
        twig = np.vstack([place, place + np.cumsum(steps, axis=0)])
        yield lesion.view.pixels(twig), lesion.view.scale * width
        if width > _CAPILLARY:
            fork = rng.uniform(0.3, 0.9) * rng.choice([-1, 1])
            growing.append((twig[-1], headings[-1] + fork, 0.7 * width))
            growing.append((twig[rng.integers(2, 8)], headings[4] - 1.2 * fork, 0.55 * width))


def blue_grey_ovoid_nests(lesion: Lesion, strength: float) -> None:
    """Large, well-defined blue-grey clods, not joined to each other."""
    sizes = lesion.rng.uniform(0.1, 0.3, lesion.rng.integers(2, 8))
    nests = lesion.clods(lesion.scatter(len(sizes), 0.75), sizes, 0.5)
    lesion.blue += 0.4 * strength * nests
    lesion.melanin += 0.7 * strength * nests


def erosions(lesion: Lesion, strength: float) -> None:
    """Small orange-red crusted wounds."""
    sizes = lesion.rng.uniform(0.05, 0.2, lesion.rng.integers(1, 6))
    wounds = lesion.clods(lesion.scatter(len(sizes), 0.6), sizes, 1.0)
    lesion.blood += 0.7 * strength * wounds
    lesion.melanin += 0.5 * strength * wounds


def strawberry_pattern(lesion: Lesion, strength: float) -> None:
    """A red pseudonetwork around white, wide hair follicles."""
    cells = lesion.cells(lesion.rng.uniform(0.2, 0.32), 0.28)
    lesion.blood += 0.5 * strength * lesion.body * (np.clip(1 - cells / 0.6, 0, 1) - 0.2)
    lesion.white += 0.28 * strength * lesion.body * _step(cells - 0.75, 0.25)


def scale(lesion: Lesion, strength: float) -> None:
    """White to yellow flakes of keratin on the surface."""
    flakes = _step(lesion.noise(0.45) + 0.7 * lesion.noise(0.12) + 0.5 * lesion.noise(0.06) - 0.75, 0.5)
    lesion.white += 0.5 * strength * flakes * np.sqrt(lesion.body)


def lacunae(lesion: Lesion, strength: float) -> None:
    """Round red to purple lakes of blood, parted by pale septa."""
    lakes = _step(lesion.cells(lesion.rng.uniform(0.3, 0.6), 0.3) - lesion.rng.uniform(0.05, 0.3), 0.3)
    lakes, purple = lakes * lesion.body, lesion.rng.random() * np.clip(0.4 + lesion.noise(0.5), 0, 1)
    lesion.blood += strength * (0.5 * lesion.body + 0.6 * lakes)
    lesion.blue += 0.45 * purple * strength * lakes
    lesion.melanin += 0.9 * purple * strength * lakes
    lesion.white += 0.12 * strength * (lesion.body - lakes)


def central_white_patch(lesion: Lesion, strength: float) -> None:
    """A scar-like white middle."""
    patch = _step(lesion.depth - lesion.rng.uniform(0.35, 0.6) + 0.2 * lesion.noise(0.35), 0.35)
    lesion.melanin *= 1 - 0.7 * strength * patch
    lesion.white += 0.4 * strength * patch * np.clip(0.8 + 0.4 * lesion.noise(0.12), 0, 1)


Structure = Callable[[Lesion, float], None]
Range = tuple[float, float]

_SITES = ("back", "trunk", "abdomen", "chest", "lower extremity", "upper extremity", "face", "scalp", "neck")
_DX_TYPES = ("histo", "follow_up", "consensus", "confocal")


@dataclass(frozen=True)
class Kind:
    """What lesions of a class look like, and whom and where they befall."""

    share: float
    irregularity: Range
    softness: Range
    melanin: Range
    blood: Range
    structures: Mapping[Structure, float]
    """Structures in the order they are laid down, with the chance of each."""
    age: float
    male: float
    sites: tuple[int, ...]
    """Weights of _SITES."""
    dx_types: tuple[int, ...]
    """Weights of _DX_TYPES."""


# Chances are far from 0 and 1 so that classes overlap: some melanomas look like nevi, and the reverse.
_KINDS = {
    "nv": Kind(
        0.36, (0.03, 0.14), (0.12, 0.5), (0.15, 1.3), (0.0, 0.6),
        {several_colours: 0.12, pigment_network: 0.65, globules: 0.35, irregular_blotch: 0.1,
         atypical_network: 0.08, irregular_globules: 0.12, regression: 0.03},
        46, 0.49, (20, 22, 13, 5, 20, 12, 3, 1, 3), (50, 36, 12, 2),
    ),
    "mel": Kind(
        0.18, (0.08, 0.26), (0.06, 0.35), (0.15, 1.2), (0.0, 0.6),
        {several_colours: 0.7, pigment_network: 0.12, atypical_network: 0.6, irregular_blotch: 0.5,
         irregular_globules: 0.5, blue_white_veil: 0.5, regression: 0.35},
        61, 0.61, (28, 12, 8, 8, 18, 16, 8, 2, 2), (100, 0, 0, 0),
    ),
    "bkl": Kind(
        0.14, (0.05, 0.2), (0.04, 0.2), (0.15, 1.2), (0.0, 0.6),
        {several_colours: 0.15, pigment_network: 0.12, fissures: 0.45, comedo_like_openings: 0.6,
         milia_like_cysts: 0.7, scale: 0.15, blue_white_veil: 0.05},
        64, 0.57, (20, 8, 6, 7, 14, 10, 28, 3, 4), (70, 0, 27, 3),
    ),
    "bcc": Kind(
        0.12, (0.06, 0.22), (0.2, 0.5), (0.0, 0.75), (0.05, 0.6),
        {arborising_vessels: 0.75, blue_grey_ovoid_nests: 0.6, erosions: 0.35, milia_like_cysts: 0.1,
         scale: 0.1},
        67, 0.62, (28, 8, 4, 9, 14, 10, 18, 5, 4), (100, 0, 0, 0),
    ),
    "akiec": Kind(
        0.08, (0.06, 0.22), (0.2, 0.6), (0.0, 0.75), (0.05, 0.5),
        {strawberry_pattern: 0.7, scale: 0.7, erosions: 0.3, arborising_vessels: 0.05},
        67, 0.68, (10, 3, 2, 5, 20, 20, 32, 5, 3), (100, 0, 0, 0),
    ),
    "vasc": Kind(
        0.06, (0.03, 0.14), (0.05, 0.3), (0.0, 0.5), (0.0, 0.4),
        {lacunae: 0.92, arborising_vessels: 0.08},
        51, 0.48, (12, 30, 14, 8, 14, 10, 6, 3, 3), (16, 0, 84, 0),
    ),
    "df": Kind(
        0.06, (0.03, 0.13), (0.2, 0.6), (0.1, 0.85), (0.0, 0.5),
        {delicate_network: 0.8, central_white_patch: 0.8, globules: 0.08, arborising_vessels: 0.05},
        52, 0.46, (7, 5, 3, 2, 62, 19, 1, 0, 1), (48, 0, 52, 0),
    ),
}  # fmt: skip


def synthetic(*, lesions: int, seed: int) -> list[SourceImage]:
    """List two to four images of each lesion; each is drawn, always alike, when its content is read."""
    rng = _generator(seed, 0)
    labels = _labels(lesions, rng)
    sizes = rng.choice([1, 2, 3], size=lesions, p=[0.75, 0.18, 0.07])
    patients = np.repeat(np.arange(lesions), sizes)[:lesions].tolist()
    for label in _KINDS:  # with a patient of its own, a lesion can go into any split
        for lesion in [index for index, other in enumerate(labels) if other == label][:_SPLITS]:
            patients[lesion] = lesions + lesion
    firsts = {patient: labels[patients.index(patient)] for patient in set(patients)}
    people = {
        patient: _Person(_generator(seed, 1, patient), _KINDS[first]) for patient, first in firsts.items()
    }
    return [
        image
        for lesion, (label, patient) in enumerate(zip(labels, patients, strict=True))
        for image in _images(label, lesion, f"SYNP_{patient:06}", people[patient], seed)
    ]


def _generator(seed: int, *key: int) -> Generator:
    return np.random.default_rng(SeedSequence(seed, spawn_key=key))


def _labels(lesions: int, rng: Generator) -> list[str]:
    """A class for each lesion: shares as in _KINDS, yet three lesions of each class where they suffice."""
    counts = dict.fromkeys(_KINDS, min(_SPLITS, lesions // len(_KINDS)))
    for _ in range(lesions - sum(counts.values())):
        counts[max(counts, key=lambda label: lesions * _KINDS[label].share - counts[label])] += 1
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [labels[index] for index in rng.permutation(lesions)]


class _Person:
    """Whoever has the lesions; older and more often male where the first lesion's class is."""

    def __init__(self, rng: Generator, kind: Kind) -> None:
        self.tone = 0.04 + 1.2 * rng.beta(0.9, 2.0)
        age = 5 * round(float(np.clip(rng.normal(kind.age, 14), 5, 85)) / 5)
        self.age = float(age) if rng.random() > _NO_AGE else None
        self.sex = "male" if rng.random() < kind.male else "female"


def _images(label: str, lesion: int, patient_id: str, person: _Person, seed: int) -> Iterator[SourceImage]:
    kind, rng, name = _KINDS[label], _generator(seed, 2, lesion), f"SYN_{lesion:06}"
    site = _pick(_SITES, kind.sites, rng)
    dx_type = _pick(_DX_TYPES, kind.dx_types, rng)
    for number in range(1, 1 + int(rng.choice([2, 3, 4], p=[0.4, 0.4, 0.2]))):
        yield SourceImage(
            image_id=f"{name}_{number}",
            lesion_id=name,
            label=label,
            path=f"{name}_{number}.jpg",
            content=partial(_jpeg, label, person.tone, seed, lesion, number),
            mask=partial(_outline, label, seed, lesion, number),
            patient_id=patient_id,
            age=person.age,
            sex=person.sex,
            site=site,
            dx_type=dx_type,
            license="Apache-2.0",  # that of this program
        )


def _pick(names: tuple[str, ...], weights: tuple[int, ...], rng: Generator) -> str:
    return names[rng.choice(len(names), p=np.array(weights) / sum(weights))]


def _jpeg(label: str, tone: float, seed: int, lesion: int, number: int) -> bytes:
    """Draw one image of a lesion: the same lesion for every `number`, each seen otherwise."""
    rng = _generator(seed, 2, lesion, number)
    grown = _grow(_KINDS[label], _generator(seed, 3, lesion), _view(rng))
    photo = _photograph(_artefacts(_reflect(grown, tone, rng), rng), rng)
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _outline(label: str, seed: int, lesion: int, number: int) -> bytes:
    """Where the lesion is in the image that `_jpeg` draws, up to its outline, white on black."""
    view = _view(_generator(seed, 2, lesion, number))
    body = _bare(_KINDS[label], _generator(seed, 3, lesion), view).depth > 0
    file = io.BytesIO()
    Image.fromarray(body).save(file, "PNG")
    return file.getvalue()


def _view(rng: Generator) -> View:
    centre = (WIDTH / 2 + rng.normal(0, 16), HEIGHT / 2 + rng.normal(0, 12))
    return View(rng.uniform(0, math.tau), float(np.exp(rng.normal(math.log(58), 0.25))), centre)


def _bare(kind: Kind, rng: Generator, view: View) -> Lesion:
    """The shape of a lesion of a kind."""
    return Lesion(rng, view, rng.uniform(*kind.irregularity), rng.uniform(*kind.softness))


def _grow(kind: Kind, rng: Generator, view: View) -> Lesion:
    """A lesion of a kind: its body, then those of its structures that chance gives it."""
    lesion = _bare(kind, rng, view)
    mottled, fine = lesion.noise(0.5), lesion.noise(0.1)
    lesion.melanin = lesion.body * rng.uniform(*kind.melanin) * np.exp(0.35 * mottled + 0.2 * fine)
    lesion.melanin *= 1 + rng.uniform(-0.2, 0.6) * np.clip(lesion.depth, 0, 1)
    lesion.blood = lesion.body * rng.uniform(*kind.blood) * (1 - 0.4 * mottled)
    for structure, chance in kind.structures.items():
        own = rng.spawn(1)[0]
        if own.random() < chance:
            lesion.rng = own
            structure(lesion, own.uniform(0.3, 1))
    lesion.rng = rng
    return lesion


def _reflect(lesion: Lesion, tone: float, rng: Generator) -> Light:
    """The light (HEIGHT, WIDTH, 3) that lesion and skin reflect; the skin may be sun-damaged."""
    sun, flush = max(0.0, lesion.rng.normal(0.1, 0.3)), lesion.rng.uniform(0.02, 0.22)
    broad, mottled, texture = lesion.noise(0.9, 8), lesion.noise(0.35, 8), _grain(rng, 2.2) + _grain(rng, 5)
    capillaries = lesion.furrows(0.3, 0.15, 8) * np.clip(broad + 0.3, 0, 1)
    melanin = tone * (1 + 0.06 * mottled + 0.04 * texture) + 0.12 * sun * np.clip(mottled - broad, 0, 2)
    blood = flush * (1 + 0.4 * broad + 0.2 * mottled) + 0.02 * texture + 0.3 * sun * capillaries
    melanin, blood = melanin + np.maximum(lesion.melanin, 0), blood + np.maximum(lesion.blood, 0)
    light = _PALE * np.exp(-np.stack([melanin, blood], axis=-1) @ _ABSORPTION)
    for share, colour in ((lesion.blue, _BLUE), (lesion.white, _WHITE * _PALE ** (3 * tone))):
        light += np.clip(share, 0, 0.9)[..., None] * (colour - light)
    return light


def _grain(rng: Generator, spacing: float) -> Layer:
    """Smooth noise fixed to the image, with blobs of about `spacing` pixels."""
    lattice = rng.standard_normal((math.ceil(HEIGHT / spacing), math.ceil(WIDTH / spacing)), np.float32)
    return np.asarray(Image.fromarray(lattice).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def _artefacts(light: Light, rng: Generator) -> Light:
    """What lies between skin and lens: hairs, gel bubbles, ruler marks, the dark rim of the lens."""
    for chance, artefact in ((0.5, _hairs), (0.3, _gel_bubbles), (0.25, _ruler_marks), (0.35, _vignette)):
        if rng.random() < chance:
            light = artefact(light, rng)
    return light


def _hairs(light: Light, rng: Generator) -> Light:
    count, along, trend = int(rng.integers(2, 16)), np.linspace(-1, 1, 16), rng.uniform(0, math.tau)
    lines = []
    for _ in range(count):
        heading = trend + rng.normal(0, 0.6) + rng.normal(0, 0.5) * along
        step = rng.uniform(4, 16) * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        start = rng.uniform((-40, -40), (WIDTH, HEIGHT))
        lines.append((start + np.cumsum(step, axis=0), rng.uniform(0.5, 1.4)))
    colour = np.array([0.22, 0.15, 0.12], np.float32) * np.float32(rng.uniform(0.5, 2.5))
    return light + (0.85 * _lines(lines, 0.4))[..., None] * (colour - light)


def _gel_bubbles(light: Light, rng: Generator) -> Light:
    places, radii = rng.uniform((0, 0), (WIDTH, HEIGHT), (int(rng.integers(1, 7)), 2)), rng.uniform(2, 11, 1)
    radii = radii * rng.uniform(0.4, 1, len(places))
    rims = _discs(places, radii, 0.6) - _discs(places, 0.8 * radii, 1.2)
    glints = _discs(places - 0.4 * radii[:, None], 0.2 * radii, 0.5)
    return light * (1 - 0.25 * rims[..., None]) + 0.5 * glints[..., None]


def _ruler_marks(light: Light, rng: Generator) -> Light:
    pitch, left = rng.uniform(9, 20), rng.uniform(0, WIDTH / 2)
    lines = []
    for mark in range(int(rng.integers(5, 14))):
        length = 11 if mark % 5 == 0 else 6
        x = left + mark * pitch
        lines.append((np.array([[x, 0], [x + 1, length]]), 1.0))
    marks = _lines(lines, 0.5)
    return light * (1 - 0.85 * (marks if rng.integers(2) else marks[::-1]))[..., None]


def _vignette(light: Light, rng: Generator) -> Light:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    x, y = WIDTH / 2 + rng.normal(0, 8), HEIGHT / 2 + rng.normal(0, 6)
    distance = np.hypot(columns - x, rows - y).astype(np.float32) / WIDTH
    return light * _step(rng.uniform(0.44, 0.6) - distance, rng.uniform(0.01, 0.08))[..., None]


def _photograph(light: Light, rng: Generator) -> Image.Image:
    """What the camera makes of the light: lighting, white balance, contrast, blur, noise of the sensor."""
    rows, columns = np.ogrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    slope = rng.normal(0, 0.06, 2)
    lamp = 1 + slope[0] * rows + slope[1] * columns - rng.uniform(0, 0.12) * (rows**2 + columns**2)
    balance = np.exp(rng.normal(0.03, 0.1) + rng.normal(0, (0.04, 0.06, 0.08))).astype(np.float32)
    seen = light * lamp.astype(np.float32)[..., None] * balance
    seen *= 1 + np.float32(rng.normal(0, 0.15)) * (seen - np.float32(0.6))
    seen += rng.uniform(0.004, 0.016) * rng.standard_normal(light.shape, np.float32)
    photo = Image.fromarray((255 * np.clip(seen, 0, 1)).astype(np.uint8))
    return photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
