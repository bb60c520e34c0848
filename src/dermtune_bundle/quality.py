"""Can an image be judged at all? How sharp it is, how bright, and how large."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dermtune_bundle.decode import resize

_SIDE = 128  # pixels: what is judged is the picture, not the camera's resolution


@dataclass(frozen=True)
class Quality:
    """Of one image."""

    sharpness: float
    """Standard deviation of the Laplacian of its grey levels, at 128 x 128 pixels."""
    brightness: float
    """Mean grey level, 0 to 255."""
    side: int
    """Of the image as `decode` gives it, the shorter one, in pixels."""


def measure_quality(image: NDArray[np.uint8]) -> Quality:
    """Measure an RGB image, uint8 (H, W, 3).

    Source of the sharpness: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000.
    """
    grey = resize(image, _SIDE).mean(axis=2)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    laplacian = around - 4 * grey[1:-1, 1:-1]
    return Quality(float(laplacian.std()), float(grey.mean()), min(image.shape[:2]))
