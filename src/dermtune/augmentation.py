"""Augmented views of an image: the only user of albumentations.

A view depends on the seed, the image's id and the view's number alone, never on order or workers.
"""

import hashlib
from dataclasses import dataclass

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MAX_ASPECT = 4 / 3  # a crop is at most this much wider or higher in shape than the image


@dataclass(frozen=True)
class Variation:
    """How much views may differ from their image; the terms are those of `augment` in params.yaml."""

    min_scale: float
    color: float
    hue: float
    rotate: float


def make_views(
    image: NDArray[np.uint8], variation: Variation, *, views: int, image_id: str, size: int, seed: int
) -> NDArray[np.uint8]:
    """All views of one image.

    Args:
        image: (H, W, 3) uint8 RGB, as decoded from the original file.
        variation: how much to vary it.
        views: how many to make.
        image_id: with `seed` and the view's number, decides every draw.
        size: side of a view in pixels.
        seed: of the run.

    Returns:
        (views, size, size, 3) uint8.
    """
    key = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8])
    change = _appearance(variation)
    made = np.empty((views, size, size, 3), dtype=np.uint8)
    for view in range(views):
        rng = np.random.default_rng([seed, key, view])
        change.set_random_seed(int(rng.integers(2**31)))
        made[view] = change(image=_random_crop(image, variation.min_scale, size, rng))["image"]
    return made


def _random_crop(
    image: NDArray[np.uint8], min_scale: float, size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A box of random area, shape and place, resized with antialiasing as the deployable graph does."""
    height, width = image.shape[:2]
    share = rng.uniform(min_scale, 1)
    stretch = min(_MAX_ASPECT, 1 / share) ** (rng.uniform(-1, 1) / 2)  # no side grows beyond the image
    box_width = min(width, width * np.sqrt(share) * stretch)
    box_height = min(height, height * np.sqrt(share) / stretch)
    left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
    box = (left, top, left + box_width, top + box_height)
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized, dtype=np.uint8)


def _appearance(variation: Variation) -> albumentations.Compose:
    strength = (1 - variation.color, 1 + variation.color)
    return albumentations.Compose(
        [
            albumentations.D4(p=1),
            albumentations.Affine(
                rotate=(-variation.rotate, variation.rotate), border_mode=cv2.BORDER_REFLECT_101, p=0.7
            ),
            albumentations.ColorJitter(strength, strength, strength, (-variation.hue, variation.hue), p=0.9),
        ]
    )
