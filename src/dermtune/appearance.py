"""What an image shows besides the diagnosis: where the lesion is, how large, how light the skin around it.

Estimates, for asking whether a model serves some people less well than others; none goes into the model.
Where a lesion fills the image, its colour is taken for the skin's.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
Mask: TypeAlias = NDArray[np.bool_]

SKIN_TONES: Final = {
    "very light": 55.0,
    "light": 41.0,
    "intermediate": 28.0,
    "tan": 10.0,
    "brown": -30.0,
    "dark": -90.0,
}
"""Classes of skin tone by the lowest individual typology angle of each, in degrees."""
MASKS: Final = "masks.npy"
"""What ingest writes beside the image table: a packed mask an image, in its order."""
_SIDE = 128  # pixels: lesions are large, and hairs vanish
NO_MASK: Final = np.zeros(_SIDE * _SIDE // 8, np.uint8)
"""In the place of a mask that the source lacks."""
_DARK = 20.0  # L* of the corners that a dermatoscope's tube leaves
_MARGIN = 0.06  # of the side: between the lesion's border and what counts as skin
_LEAST_SKIN = 0.02  # share of the image below which nothing is said of the skin


@dataclass(frozen=True)
class Appearance:
    """Of one image."""

    lesion_share: float
    """Share of the image that the lesion covers."""
    ita: float | None
    """Individual typology angle of the skin around it, in degrees; None where too little skin is seen."""


def appearance(image: Image, given: Mask | None = None) -> Appearance:
    """Estimate the lesion's size and the skin's tone in an RGB image.

    Args:
        image: uint8 (H, W, 3).
        given: where the lesion is, of any size, if that is known.
    """
    lab = _lab(image)
    lesion, corners = _find_lesion(lab)
    lesion = lesion if given is None else _rescale(given, _SIDE, _SIDE)
    skin = lab[~grow(lesion | corners, _MARGIN)]
    if len(skin) < _LEAST_SKIN * _SIDE**2:
        return Appearance(float(lesion.mean()), None)
    light, yellow = np.median(skin[:, 0]), np.median(skin[:, 2])
    return Appearance(float(lesion.mean()), typology_angle(float(light), float(yellow)))


def typology_angle(light: float, yellow: float) -> float:
    """Individual typology angle in degrees, of L* and b*: the lighter the skin, the larger.

    Source: Chardon, Cretois and Hourseau, Skin colour typology and suntanning pathways, 1991.
    """
    return float(np.degrees(np.arctan2(light - 50, yellow)))


def skin_tone(ita: float) -> str:
    """The class of an individual typology angle.

    Source: Del Bino and Bernerd, Variations in skin colour and the biological consequences of ultraviolet
    radiation exposure, British Journal of Dermatology 2013.
    """
    return next(name for name, lowest in SKIN_TONES.items() if ita > lowest or name == "dark")


def lesion_mask(image: Image) -> Mask:
    """Estimate where the lesion is in an RGB image, uint8 (H, W, 3): bool (H, W)."""
    lesion, _ = _find_lesion(_lab(image))
    return _rescale(lesion, *image.shape[:2])


def pack_mask(mask: Mask) -> NDArray[np.uint8]:
    """A mask (H, W) as ingest keeps it: uint8 (2048,), a bit for each of 128 x 128 places."""
    return np.packbits(_rescale(mask, _SIDE, _SIDE))


def unpack_mask(packed: NDArray[np.uint8], height: int, width: int) -> Mask:
    """What `pack_mask` gave, as bool (height, width)."""
    return _rescale(np.unpackbits(packed).reshape(_SIDE, _SIDE) > 0, height, width)


def _rescale(mask: Mask, height: int, width: int) -> Mask:
    scaled: Mask = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0
    return scaled


def grow(mask: Mask, margin: float) -> Mask:
    """The mask (H, W) and what lies within a margin of it, a share of the shorter side."""
    reach = 2 * round(margin * min(mask.shape)) + 1
    grown: Mask = cv2.dilate(mask.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    return grown


def _lab(image: Image) -> NDArray[np.float32]:
    small = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    smooth = cv2.medianBlur(small, 5)  # hairs and rulers are thin
    return np.asarray(cv2.cvtColor(smooth.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def _find_lesion(lab: NDArray[np.float32]) -> tuple[Mask, Mask]:
    """The lesion and the dark corners, (S, S) each.

    The lesion is what differs most in colour from the rim of the image, by Otsu's threshold: the part of it
    that is largest, nearer to the middle counting more.
    """
    corners = _joined_to_rim(lab[..., 0] < _DARK)
    rim = np.ones((_SIDE, _SIDE), bool)
    border = _SIDE // 8
    rim[border:-border, border:-border] = False
    skin = np.median(lab[rim & ~corners] if (rim & ~corners).any() else lab.reshape(-1, 3), axis=0)
    distance = np.linalg.norm(lab - skin, axis=2)
    distance[corners] = 0
    scaled = np.clip(distance * (255 / max(float(distance.max()), 1e-6)), 0, 255).astype(np.uint8)
    threshold, _ = cv2.threshold(scaled[~corners].reshape(-1, 1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    found = ((scaled > threshold) & ~corners).astype(np.uint8)
    found = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    found = cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, labels = cv2.connectedComponents(found)
    if count < 2:  # noqa: PLR2004 (the background alone)
        return np.zeros_like(corners), corners
    places = np.linspace(-1, 1, _SIDE)
    nearness = np.exp(-2 * (places[:, None] ** 2 + places**2))
    weights = np.bincount(labels.ravel(), nearness.ravel(), minlength=count)
    lesion = labels == 1 + int(np.argmax(weights[1:]))
    return lesion | (~_joined_to_rim(~lesion) & ~lesion), corners  # with its holes


def _joined_to_rim(mask: Mask) -> Mask:
    """The parts of the mask that touch the image's rim."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    touching = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return mask & np.isin(labels, touching)
