"""Check image files: can they be decoded, do they show anything, are they named and labelled?"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dermtune.appearance import pack_mask
from dermtune.burned_text import has_text
from dermtune.duplicates import make_print
from dermtune.engine import LOCAL, ComputeConfig, each
from dermtune.errors import SourceError
from dermtune.privacy import scrub
from dermtune.sources import SourceImage
from dermtune.sources.files import file_key
from dermtune_bundle.decode import count_pictures, decode
from dermtune_bundle.errors import ImageError

log = logging.getLogger(__name__)

NO_FILE = "listed by the source, but there is no such file"
REPEATED = "its id occurs twice"
BY_CHOICE = "left out by params.yaml: "
"""What a reason begins with where the file may well be sound."""
_BLANK_STD = 2.0  # grey levels; the flattest real dermoscopic image that we saw has 9
_ASPECT = 0.02  # by which a mask's shape may differ from its image's, after rescaling
_IMAGE_ID = re.compile(r"[\w.-]{1,100}")


@dataclass(frozen=True)
class CheckedImage:
    """A file that can be used."""

    data: bytes
    """The picture, with nothing in it but what its pixels need (`privacy.scrub`)."""
    suffix: str
    """Of `data`: `.jpg` or `.png`."""
    sha256: str
    """Of the original file."""
    print: NDArray[np.uint8]
    """As `duplicates.make_print` gives it."""
    width: int
    height: int
    colour: tuple[float, float, float]
    """Mean red, green and blue, 0 to 255."""
    has_text: bool
    """As `burned_text.has_text` finds it."""
    mask: NDArray[np.uint8] | None = None
    """As `appearance.pack_mask` gives it; None: the source has none that can be used."""
    file: str | None = None
    """As of `files.file_key`; None: it cannot be told, or the file changed while it was read."""


def check_image(image: SourceImage) -> CheckedImage | str:
    """Read and decode a file as the clinicians' side will; gives the reason where it cannot be used."""
    before = file_key(image)
    try:
        data = image.content()
        pixels = decode(data, name=image.image_id)
    except OSError as error:
        return NO_FILE if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    except ImageError as error:
        return str(error).removeprefix(f"{image.image_id}: ")
    if (pictures := count_pictures(data)) > 1:
        return f"holds {pictures} pictures, of which any may be meant"
    colour, deviation = _statistics(pixels)
    if deviation < _BLANK_STD:
        return "blank: all pixels have nearly the same colour"
    height, width = pixels.shape[:2]
    kept, suffix = scrub(data, pixels)
    mask = _read_mask(image, width, height)
    return CheckedImage(
        data=kept,
        suffix=suffix,
        sha256=hashlib.sha256(data).hexdigest(),
        print=make_print(pixels),
        width=width,
        height=height,
        colour=colour,
        has_text=has_text(pixels),
        mask=mask,
        file=before if before == file_key(image) else None,
    )


def _statistics(pixels: NDArray[np.uint8]) -> tuple[tuple[float, float, float], float]:
    """Mean red, green and blue, and the standard deviation of all values."""
    means, deviations = cv2.meanStdDev(pixels)
    red, green, blue = means.ravel().round(2).tolist()
    return (red, green, blue), float(np.sqrt((deviations**2).mean() + means.var()))


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


def check_listing(
    images: Sequence[SourceImage], left_out: Sequence[str | None] | None = None
) -> list[str | None]:
    """Why images cannot be used, by what their source says of them; None: nothing is wrong so far.

    An id that occurs again, or a lesion with several diagnoses, is nobody's to guess: where labels differ,
    all images of it are set aside; of the same id and label, the first is kept.

    Args:
        images: labelled by classes; an empty label is none.
        left_out: for each image, why it is left out by choice, or None.

    Returns:
        The reasons; REPEATED is for who knows whether the first of that id could be used.
    """
    labels_of_lesion = _labels_by(images, [image.lesion_id for image in images])
    labels_of_id = _labels_by(images, [image.image_id.casefold() for image in images])
    first: dict[str, str] = {}
    reasons = []
    for image, chosen in zip(images, left_out or [None] * len(images), strict=True):
        key = image.image_id.casefold()
        reason = chosen or _reason(image, labels_of_id[key], labels_of_lesion[image.lesion_id])
        if reason is None and key in first:
            is_same = first[key] == image.image_id
            reason = REPEATED if is_same else "its id differs from another's in case alone"
        if reason is None:
            first[key] = image.image_id
        reasons.append(reason)
    return reasons


def _labels_by(images: Sequence[SourceImage], keys: Iterable[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for image, key in zip(images, keys, strict=True):
        found.setdefault(key, set()).update({image.label} - {""})
    return found


def _reason(image: SourceImage, labels_of_id: set[str], labels_of_lesion: set[str]) -> str | None:
    if not _IMAGE_ID.fullmatch(image.image_id):
        return "its id has characters other than letters, digits, '.', '-' and '_', or over 100 of them"
    if not image.label:
        return "no label"
    if not image.lesion_id:
        return "no lesion_id: nothing could keep its lesion out of another split"
    if len(labels_of_id) > 1:
        return f"its id occurs with several diagnoses: {', '.join(sorted(labels_of_id))}"
    if len(labels_of_lesion) > 1:
        return f"its lesion has several diagnoses: {', '.join(sorted(labels_of_lesion))}"
    return None


def check_images(
    images: Sequence[SourceImage], compute: ComputeConfig = LOCAL
) -> Iterator[CheckedImage | str]:
    """`check_image` of every image, in order, on all cores or on Ray.

    That another machine does not see a file is no proof that there is none: it is looked for here as well.
    """
    if images:
        checks = each(compute, make_check, images, chunk=8, processes=True)
        for image, checked in zip(images, checks, strict=True):
            yield check_image(image) if checked == NO_FILE else checked


def make_check() -> Callable[[SourceImage], CheckedImage | str]:
    """Make `check_image`, in whatever process."""
    return check_image


def refuse_bad_source(kept: int, quarantined: Sequence[Mapping[str, str]], *, allowed: float) -> None:
    """Stop where too many of the files found are unusable.

    A listed file that is missing is a warning; what is listed twice or left out by params.yaml is neither.

    Args:
        kept: how many images can be used.
        quarantined: a `path` and a `reason` each.
        allowed: largest share of the files found that may be unusable.

    Raises:
        SourceError: with the first five files and their reasons.
    """
    found = [row for row in quarantined if not row["reason"].startswith((BY_CHOICE, REPEATED))]
    missing = sum(row["reason"] == NO_FILE for row in found)
    unusable = len(found) - missing
    if missing:
        log.warning("%d listed images have no file: see quarantine.parquet", missing)
    if not kept or unusable > allowed * (unusable + kept):
        shown = "; ".join(f"{row['path']}: {row['reason']}" for row in (found or quarantined)[:5])
        raise SourceError(
            f"{unusable} of {unusable + kept} files are unusable, and {missing} listed ones missing, more"
            f" than ingest.max_quarantine ({allowed}) allows: mend the source or raise it. First: {shown}"
        )
