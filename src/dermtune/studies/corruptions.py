"""What can go wrong when a lesion is photographed: artefacts at five severities, simulated.

Each function takes light (H, W, 3), 0 to 1, and gives light of the same shape. What it draws does not depend
on the severity, so that a more severe image is the same accident, only worse: more of the same hairs, not
others. Lengths are shares of the image's shorter side.

Source: five severities, and the kinds of blur, noise and compression, as in Hendrycks and Dietterich,
Benchmarking neural network robustness to common corruptions and perturbations, ICLR 2019; of dermoscopic
images as in Maron et al., A benchmark for neural network robustness in skin cancer classification, European
Journal of Cancer 2021. The code and the numbers are our own.
"""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W, 3)
Light = NDArray[np.floating]  # (H, W, 3), 0 to 1
Layer = NDArray[np.floating]  # (H, W), 0 to 1

SEVERITIES: Final = (1, 2, 3, 4, 5)
_GAMMA: Final = 2.2  # of sRGB, nearly
_DARKEST = np.float32(1 / 255)
_FINE = 2  # lines are drawn at so many times the size
_BITS = 3  # of a pixel's fraction, as cv2 draws lines


@dataclass(frozen=True)
class Corruption:
    """An artefact."""

    name: str
    title: str
    """For people."""
    stands_for: str
    """What of the world it stands for, a sentence without its full stop."""
    change: Callable[[Light, int, Generator], Light]
    """From an image, a severity of 1 to 5 and draws to the image with it; values outside 0 to 1 are cut."""


def corrupt(pixels: Pixels, corruption: Corruption, severity: int, *, image_id: str, seed: int) -> Pixels:
    """An image with an artefact; the same draws whatever the severity.

    Args:
        pixels: uint8 (H, W, 3).
        corruption: of CORRUPTIONS.
        severity: 0 (the image itself) to 5.
        image_id: with the seed and the corruption's name, decides every draw.
        seed: of the study.

    Raises:
        ValueError: there is no such severity.
    """
    if severity == 0:
        return pixels
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity}: expected 0 to {SEVERITIES[-1]}")
    rng = generator(seed, image_id, corruption.name)
    changed = corruption.change(pixels.astype(np.float32) / np.float32(255), severity, rng)
    return np.asarray(np.rint(255 * np.clip(changed, 0, 1)), np.uint8)


def generator(seed: int, *key: str) -> Generator:
    """Draws for one image and one purpose, whatever the order in which images come."""
    digests = (hashlib.sha256(part.encode()).digest()[:8] for part in key)
    return np.random.default_rng([seed, *(int.from_bytes(digest) for digest in digests)])


# What lies on the skin.


def hair(light: Light, severity: int, rng: Generator) -> Light:
    """Terminal hairs, in a common direction, more and more of them."""
    unit, size = _unit(light), np.array(light.shape[1::-1])
    trend, along = rng.uniform(0, math.tau), np.linspace(0, 1, 12)
    lines = []
    for _ in range(60):
        heading = trend + rng.normal(0, 0.45) + rng.normal(0, 0.8) * along
        steps = rng.uniform(0.3, 1.1) / 11 * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        start = rng.uniform(-0.2, 1.1, 2) * size
        lines.append((start + unit * np.cumsum(steps, axis=0), unit * rng.uniform(0.004, 0.011)))
    colour = np.array([0.16, 0.11, 0.09], np.float32) * np.float32(rng.uniform(0.6, 2.2))
    mask = 0.92 * _lines(light, lines[: (5, 12, 22, 38, 60)[severity - 1]])
    return _mix(light, colour, mask)


def ruler(light: Light, severity: int, rng: Generator) -> Light:
    """A transparent ruler that covers more and more of one side, with its marks."""
    turns, pitch, start = int(rng.integers(4)), rng.uniform(0.03, 0.06), rng.uniform(0, 0.06)
    turned = np.rot90(light, turns)
    unit, (height, width) = _unit(light), turned.shape[:2]
    depth = (0.08, 0.14, 0.20, 0.27, 0.35)[severity - 1]
    # the edge is straight, its marks hang from it towards the border
    edge = depth * unit
    body = np.clip(edge - np.arange(height, dtype=np.float32), 0, 1)[:, None] * np.ones(width, np.float32)
    marks = []
    for mark in range(math.ceil(width / (pitch * unit))):
        x = (start + mark * pitch) * unit
        length = (0.06 if mark % 5 == 0 else 0.035) * unit
        marks.append((np.array([[x, edge - length], [x, edge]]), 0.008 * unit))
    covered = _mix(turned, np.array([0.93, 0.93, 0.9], np.float32), 0.55 * body)
    covered = _mix(covered, np.float32(0.08), 0.9 * _lines(turned, marks))
    return np.ascontiguousarray(np.rot90(covered, -turns))


def ink(light: Light, severity: int, rng: Generator) -> Light:
    """Strokes of a surgical marker around the lesion, violet, which absorb."""
    height, width = light.shape[:2]
    unit = _unit(light)
    strokes = []
    first = rng.uniform(0, math.tau)
    for stroke in range(5):
        angle = first + stroke * math.tau * 2 / 5 + rng.normal(0, 0.2)
        arc = angle + np.linspace(-1, 1, 16) * rng.uniform(0.25, 0.5)
        radius = unit * (
            rng.uniform(0.36, 0.47) + 0.015 * rng.standard_normal() * np.linspace(-1, 1, 16) ** 2
        )
        places = np.stack([width / 2 + radius * np.cos(arc), height / 2 + radius * np.sin(arc)], axis=1)
        strokes.append((places, unit * rng.uniform(0.03, 0.045)))
    uneven = _blobs(light, rng, 0.03)
    absorbed = 1 - np.array([0.36, 0.2, 0.62], np.float32)
    mask = _lines(light, strokes[:severity]) * np.clip(0.85 + 0.12 * uneven, 0, 1)
    inked: Light = light * (1 - mask[..., None] * absorbed)
    return inked


def bubbles(light: Light, severity: int, rng: Generator) -> Light:
    """Air in the gel: round, with a dark rim and the lamp's glint."""
    unit, size = _unit(light), np.array(light.shape[1::-1])
    rims, glints = np.zeros((2, *light.shape[:2]), np.float32)
    bubbles = [
        (rng.uniform(0, 1, 2) * size, unit * 0.012 * float(np.exp(1.6 * rng.random()))) for _ in range(70)
    ]
    for centre, radius in bubbles[: (6, 14, 26, 44, 70)[severity - 1]]:
        distance, corner = _distance(light, centre, 1.5 * radius)
        rim = np.exp(-(((distance - radius) / (0.22 * radius + 0.5)) ** 2))
        glint = np.exp(
            -((_distance(light, centre - 0.45 * radius, 1.5 * radius, corner)[0] / (0.25 * radius)) ** 2)
        )
        for layer, one in ((rims, rim), (glints, glint)):
            part = layer[corner]
            np.maximum(part, one, out=part)
    return _mix(light * (1 - 0.5 * rims[..., None]), np.float32(1), 0.8 * glints)


# What the instrument and the camera do.


def dark_corners(light: Light, severity: int, rng: Generator) -> Light:
    """The round rim of the lens, nearer and nearer to the middle."""
    height, width = light.shape[:2]
    centre = np.array([width, height]) * (0.5 + rng.uniform(-0.02, 0.02, 2))
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot(columns - centre[0], rows - centre[1]).astype(np.float32)
    radius = (0.92, 0.84, 0.76, 0.68, 0.6)[severity - 1] * math.hypot(height, width) / 2
    seen: Light = light * np.clip((radius - distance) / (0.03 * _unit(light)) + 0.5, 0.02, 1)[..., None]
    return seen


def motion_blur(light: Light, severity: int, rng: Generator) -> Light:
    """The hand moved while the shutter was open."""
    length = (0.01, 0.018, 0.03, 0.046, 0.068)[severity - 1] * _unit(light)
    angle, half = rng.uniform(0, math.pi), math.ceil(length / 2) + 1
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    along = np.abs(columns * math.cos(angle) + rows * math.sin(angle))
    across = np.abs(rows * math.cos(angle) - columns * math.sin(angle))
    return _filtered(light, np.clip(length / 2 + 1 - along, 0, 1) * np.clip(1 - across, 0, 1))


def defocus(light: Light, severity: int, rng: Generator) -> Light:  # noqa: ARG001 (nothing to draw)
    """The lens is out of focus: a disc for a point."""
    radius = (0.003, 0.006, 0.01, 0.016, 0.024)[severity - 1] * _unit(light)
    half = math.ceil(radius) + 1
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    return _filtered(light, np.clip(radius + 1 - np.hypot(rows, columns), 0, 1))


def exposure(light: Light, severity: int, rng: Generator) -> Light:
    """Too little or too much light, in stops; what is too bright is lost."""
    stops = _sign(rng) * (0.35, 0.65, 0.95, 1.3, 1.7)[severity - 1]
    return light * np.float32(2 ** (stops / _GAMMA))


def white_balance(light: Light, severity: int, rng: Generator) -> Light:
    """Set for another lamp: warmer or colder, and a little more green or magenta."""
    strength = (0.12, 0.22, 0.34, 0.48, 0.65)[severity - 1]
    warm, tint = _sign(rng), rng.uniform(-0.3, 0.3)
    stops = strength * np.array([warm, tint, -warm])
    return light * np.asarray(2 ** (stops / _GAMMA), np.float32)


def jpeg(light: Light, severity: int, rng: Generator) -> Light:  # noqa: ARG001 (nothing to draw)
    """Stored too small: blocks, and colours at half the resolution."""
    quality = (40, 25, 17, 12, 8)[severity - 1]
    pixels = np.rint(255 * light).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / np.float32(255)


def noise(light: Light, severity: int, rng: Generator) -> Light:
    """Too few photons, in a small sensor: noise of the photons, and of reading them."""
    photons = (500, 200, 90, 45, 22)[severity - 1]
    linear = cv2.pow(light, _GAMMA)
    drawn = rng.standard_normal(light.shape, np.float32)
    seen = linear + drawn * np.sqrt(linear / photons + (0.6 / photons) ** 2)
    return np.asarray(cv2.pow(np.maximum(seen, 0), 1 / _GAMMA), np.float32)


def other_dermatoscope(light: Light, severity: int, rng: Generator) -> Light:
    """Towards another instrument: other lamps, less saturation, the glare of light that is not polarised."""
    unit, (height, width) = _unit(light), light.shape[:2]
    rows, columns = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    x, y = rng.uniform(-0.3, 0.3, 2)
    fall_off = 1 - 0.3 * np.clip((columns - x) ** 2 + (rows - y) ** 2, 0, 2).astype(np.float32)
    lamp = 1 + _sign(rng) * np.array([0.12, 0, -0.14], np.float32)
    grey = light.mean(axis=2, keepdims=True)
    look = (grey + 0.7 * (light - grey)) * lamp * fall_off[..., None]
    # surface light that a polariser would have kept out: a haze, and the lamps themselves, in a ring
    glare = 0.1 + 0.05 * _blobs(light, rng, 0.08)
    lamps, first, ring = int(rng.integers(6, 11)), rng.uniform(0, math.tau), rng.uniform(0.22, 0.4) * unit
    for number in range(lamps):
        angle = first + math.tau * number / lamps
        centre = np.array([width / 2 + ring * math.cos(angle), height / 2 + ring * math.sin(angle)])
        distance, corner = _distance(light, centre, 0.06 * unit)
        glare[corner] += rng.uniform(0.4, 0.9) * np.exp(-((distance / (0.018 * unit)) ** 2))
    look = _mix(look, np.float32(1), np.clip(glare, 0, 0.95))
    return light + severity / 5 * (look - light)


def stain(light: Light, severity: int, rng: Generator) -> Light:
    """More or less of melanin and of blood, which absorb each in its own colours.

    What stain augmentation is to histology (Tellez et al., Quantifying the effects of data augmentation and
    stain color normalization, Medical Image Analysis 2019), with the pigments of skin.
    """
    strength, angle = (0.1, 0.2, 0.32, 0.46, 0.62)[severity - 1], rng.uniform(0, math.tau)
    density = -_GAMMA * np.log(np.maximum(light, _DARKEST))
    amounts = density @ np.linalg.inv(_PIGMENTS).astype(np.float32)
    factors = np.exp(strength * np.array([math.cos(angle), math.sin(angle), 0], np.float32))
    return np.asarray(np.exp(-(amounts * factors) @ _PIGMENTS / _GAMMA), np.float32)


# How melanin, blood and grey absorb red, green and blue (610, 540, 460 nm), by the band they absorb most:
# melanin as the wavelength to the power of -3.3 (fits lie between -3.3 and -3.5: Jacques, Optical properties
# of biological tissues, 2013), oxygenated haemoglobin after Prahl's tables, with more red, for a camera's red
# is a broad band.
_PIGMENTS: Final = np.array([[0.39, 0.59, 1.0], [0.1, 1.0, 0.83], [1.0, 1.0, 1.0]], np.float32)

CORRUPTIONS: Final = (
    Corruption("hair", "Hair", "Hairs that were not shaved or combed aside", hair),
    Corruption("ruler", "Ruler", "A ruler laid into the picture", ruler),
    Corruption("ink", "Ink", "Marks of a surgical pen around the lesion", ink),
    Corruption("bubbles", "Gel bubbles", "Air in the immersion gel", bubbles),
    Corruption("dark_corners", "Dark corners", "The rim of the lens in the picture", dark_corners),
    Corruption("motion_blur", "Motion blur", "A hand or a patient that moved", motion_blur),
    Corruption("defocus", "Defocus", "A lens out of focus", defocus),
    Corruption("exposure", "Exposure", "Too dark or too bright a picture", exposure),
    Corruption("white_balance", "White balance", "A camera set for another lamp", white_balance),
    Corruption("jpeg", "JPEG", "A picture stored too small, or sent through a messenger", jpeg),
    Corruption("noise", "Noise", "Little light, and a small sensor", noise),
    Corruption(
        "other_dermatoscope",
        "Other dermatoscope",
        "Another instrument: other lamps, and no polariser before them",
        other_dermatoscope,
    ),
    Corruption(
        "stain",
        "Pigment shift",
        "Other skin, or another camera's colours: more or less melanin and blood",
        stain,
    ),
)


def _unit(light: Light) -> int:
    """The shorter side, in pixels."""
    return int(min(light.shape[:2]))


def _sign(rng: Generator) -> int:
    return 1 if rng.random() < 0.5 else -1  # noqa: PLR2004 (a coin)


def _mix(light: Light, colour: NDArray[np.float32] | np.float32, mask: Layer) -> Light:
    """Lay a colour over an image where the mask says so."""
    mixed: Light = light + mask[..., None] * (colour - light)
    return mixed


def _lines(light: Light, lines: list[tuple[NDArray[np.float64], float]]) -> Layer:
    """Polylines (n, 2) of x and y, each with a width, all in pixels; 1 on them, 0 beside them."""
    height, width = light.shape[:2]
    canvas = np.zeros((_FINE * height, _FINE * width), np.uint8)
    for places, thickness in lines:
        fixed = np.rint(_FINE * places * 2**_BITS).astype(np.int32)
        wide = max(1, round(_FINE * thickness))
        cv2.polylines(
            canvas, [fixed], isClosed=False, color=255, thickness=wide, lineType=cv2.LINE_AA, shift=_BITS
        )
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32) / 255


def _blobs(light: Light, rng: Generator, spacing: float) -> Layer:
    """Smooth noise of mean 0 and deviation near 0.7."""
    height, width = light.shape[:2]
    step = spacing * _unit(light)
    lattice = rng.standard_normal((math.ceil(height / step) + 1, math.ceil(width / step) + 1), np.float32)
    return np.asarray(cv2.resize(lattice, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _distance(
    light: Light, centre: NDArray[np.float64], reach: float, corner: tuple[slice, slice] | None = None
) -> tuple[Layer, tuple[slice, slice]]:
    """Distance to a place, in pixels, within a window around it, and where that window lies."""
    if corner is None:
        starts = np.maximum(np.floor(centre - reach), 0).astype(int)
        ends = np.maximum(np.ceil(centre + reach), 0).astype(int)
        height, width = light.shape[:2]
        corner = (slice(starts[1], min(ends[1], height)), slice(starts[0], min(ends[0], width)))
    rows, columns = np.ogrid[corner]
    return np.hypot(columns - centre[0], rows - centre[1]).astype(np.float32), corner


def _filtered(light: Light, kernel: NDArray[np.floating]) -> Light:
    whole = (kernel / kernel.sum()).astype(np.float32)
    return np.asarray(cv2.filter2D(light, -1, whole, borderType=cv2.BORDER_REFLECT_101), np.float32)
