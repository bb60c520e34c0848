"""Check image files: can they be decoded, do they show anything, are they named and labelled?"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from dermtune.appearance import pack_mask
from dermtune.duplicates import make_print
from dermtune.errors import SourceError
from dermtune.labels import NAMES
from dermtune.sources import SourceImage
from dermtune_bundle.decode import decode
from dermtune_bundle.errors import ImageError

log = logging.getLogger(__name__)

NO_FILE = "listed by the source, but there is no such file"
_BLANK_STD = 2.0  # grey levels; the flattest real dermoscopic image that we saw has 9
_ASPECT = 0.02  # by which a mask's shape may differ from its image's, after rescaling
_IMAGE_ID = re.compile(r"[\w.-]{1,100}")
_BATCH = 256  # images in flight, so that memory does not grow with the source


@dataclass(frozen=True)
class CheckedImage:
    """A file that can be used."""

    data: bytes
    """The original bytes."""
    sha256: str
    print: NDArray[np.uint8]
    """As `duplicates.make_print` gives it."""
    width: int
    height: int
    mask: NDArray[np.uint8] | None = None
    """As `appearance.pack_mask` gives it; None: the source has none that can be used."""


def check_image(image: SourceImage) -> CheckedImage | str:
    """Read and decode a file as the clinicians' side will; gives the reason where it cannot be used."""
    if reason := _unusable_listing(image):
        return reason
    try:
        data = image.content()
        pixels = decode(data, name=image.image_id)
    except OSError as error:
        return NO_FILE if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    except ImageError as error:
        return str(error).removeprefix(f"{image.image_id}: ")
    if float(pixels.std()) < _BLANK_STD:
        return "blank: all pixels have nearly the same colour"
    height, width = pixels.shape[:2]
    mask = _read_mask(image, width, height)
    return CheckedImage(data, hashlib.sha256(data).hexdigest(), make_print(pixels), width, height, mask)


def _read_mask(image: SourceImage, width: int, height: int) -> NDArray[np.uint8] | None:
    """The source's outline of the lesion; an image can be used without one, so that a bad one is none."""
    if image.mask is None:
        return None
    try:
        pixels = decode(image.mask(), name=image.image_id)
    except (OSError, ImageError):
        return None
    is_same_view = abs(pixels.shape[1] / pixels.shape[0] - width / height) < _ASPECT
    return pack_mask(pixels[..., 0] > 127) if is_same_view else None  # noqa: PLR2004 (the middle of a byte)


def _unusable_listing(image: SourceImage) -> str | None:
    if not _IMAGE_ID.fullmatch(image.image_id):
        return "its id has characters other than letters, digits, '.', '-' and '_', or over 100 of them"
    if not image.label:
        return "no label"
    if image.label not in NAMES:
        return f"its label {image.label!r:.40} is no class; map it by ingest.label_map"
    if not image.lesion_id:
        return "no lesion_id: nothing could keep its lesion out of another split"
    return None


def check_images(images: Sequence[SourceImage]) -> Iterator[CheckedImage | str]:
    """`check_image` of every image, in order, on all cores; an id that came before is refused."""
    seen: set[str] = set()
    # spawn: the parent may already run threads of other libraries, which a fork would copy half-way
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            for image, checked in zip(batch, pool.map(check_image, batch, chunksize=8), strict=True):
                yield "its id occurs twice" if image.image_id in seen else checked
                seen.add(image.image_id)


def refuse_bad_source(kept: int, quarantined: Sequence[Mapping[str, str]], *, allowed: float) -> None:
    """Stop where too many of the files found are unusable; a listed file that is missing is a warning.

    Args:
        kept: how many images can be used.
        quarantined: a `path` and a `reason` each.
        allowed: largest share of the files found that may be unusable.

    Raises:
        SourceError: with the first five files and their reasons.
    """
    missing = sum(row["reason"] == NO_FILE for row in quarantined)
    unusable = len(quarantined) - missing
    if missing:
        log.warning("%d listed images have no file: see quarantine.parquet", missing)
    if not kept or unusable > allowed * (unusable + kept):
        shown = "; ".join(f"{row['path']}: {row['reason']}" for row in quarantined[:5])
        raise SourceError(
            f"{unusable} of {unusable + kept} files are unusable, and {missing} listed ones missing, more"
            f" than ingest.max_quarantine ({allowed}) allows: mend the source or raise it. First: {shown}"
        )
