"""Pictures for people: small ones, and where the model looked."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_DARK = 0.25  # what is left of the light where nothing speaks for the class


def overlay(image: NDArray[np.uint8], activation: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Darken an image where a class's activation is low or negative: what stays lit speaks for the class.

    Args:
        image: uint8 (H, W, 3).
        activation: (h, w), of any size: it is stretched over the whole image, as the graph sees it.

    Returns:
        uint8 (H, W, 3).
    """
    positive = np.maximum(activation, 0).astype(np.float32)
    scaled = Image.fromarray(positive / max(float(positive.max()), 1e-9))
    light = np.asarray(scaled.resize(image.shape[1::-1], Image.Resampling.BILINEAR))[..., None]
    return (image * (_DARK + (1 - _DARK) * light)).astype(np.uint8)


def thumbnail(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The image, no side longer than `side` pixels: uint8 (h, w, 3) of (H, W, 3)."""
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    return np.array(small)


def to_jpeg(image: NDArray[np.uint8]) -> bytes:
    """The image, uint8 (H, W, 3), as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return file.getvalue()
