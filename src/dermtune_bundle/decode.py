"""Bytes of an image file to pixels: the one decoder of ingest, evaluate and predict."""

import io
import math
import warnings
from contextlib import ExitStack
from functools import partial
from threading import Lock
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dermtune_bundle import dicom
from dermtune_bundle.errors import ImageError

try:  # the extra [heic]
    from pillow_heif import register_heif_opener
except ImportError:
    HAS_HEIC = False
else:
    register_heif_opener()
    HAS_HEIC = True

FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", *(["HEIF"] if HAS_HEIC else []))
_NAMES: Final = ("JPEG", "PNG", "BMP", "TIFF", "WebP", *(["HEIC"] if HAS_HEIC else []), "DICOM")
MIN_SIDE: Final = 32
"""Pixels; a smaller image shows no lesion."""
MAX_BYTES: Final = 512 << 20
"""A larger file is not read: its pixels would not be either."""
MAX_PIXELS: Final = 64_000_000
"""More than any dermatoscope gives; refused before a pixel is decoded."""
MAX_SIDE: Final = 20_000
"""Of a longer strip, no network sees anything, and resizing it takes minutes."""
ENOUGH_PIXELS: Final = 4_000_000
"""What has more is made smaller as soon as it is decoded, by whole factors: no network sees as much."""
_FORMAT_OF: Final = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".png": "PNG",
    ".bmp": "BMP",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    ".webp": "WEBP",
    **dict.fromkeys((".heic", ".heif"), "HEIF"),
    **dict.fromkeys(dicom.SUFFIXES, "DICOM"),
}
SUFFIXES: Final = frozenset(_FORMAT_OF)
"""Of image files, in lower case."""


class _Quiet:
    """Ignores warnings while any thread is inside.

    Pillow warns of oddities that it reads all the same, and of sizes, which are checked here. When threads
    overlap, warnings.catch_warnings alone would restore the filters too early, and then leave them changed.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._filters = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters.enter_context(warnings.catch_warnings(action="ignore"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.close()


quiet = _Quiet()
"""In which nothing is warned of."""


def decode(data: bytes, *, name: str, suffix: str = "", max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode an image file to RGB pixels, upright.

    EXIF orientation and colour profiles (ICC) are applied; transparent pixels show white; 16-bit greys are
    scaled to 8 bits; of an animation, a multi-page file or a multi-frame DICOM the first image is taken
    (`count_pictures` tells); an image of more than `ENOUGH_PIXELS` is made smaller by a whole factor.

    Args:
        data: the whole file.
        name: what the error message calls it.
        suffix: of its file, such as `.png`, which must be true; empty: any that is read.
        max_pixels: more are refused before one is decoded.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ImageError: `name` and a short reason; nothing else is ever raised.
    """
    try:
        with quiet:
            if dicom.is_dicom(data):
                _require_true_suffix(suffix, "DICOM")
                pixels, profile = dicom.decode_dicom(data, require_size=partial(_require_size, max_pixels))
                image = _smaller(Image.fromarray(pixels))
                return np.array(_in_srgb(image, profile))
            return _to_rgb(_smaller(_to_eight_bits(_open(data, suffix, max_pixels))))
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except Exception as error:  # noqa: BLE001 (damaged files make Pillow raise nearly anything)
        raise ImageError(f"{name}: {_reason(error)}") from None


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize the whole image to a square, antialiased bilinear: what the deployable graph does itself.

    Args:
        image: uint8 (H, W, 3).
        size: side of the result, in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def count_pictures(data: bytes) -> int:
    """How many pages, frames or pictures a file holds that `decode` reads; only the first is decoded."""
    try:
        with quiet:
            if dicom.is_dicom(data):
                return 1 if dicom.is_deflated(data) else dicom.count_frames(data)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return int(getattr(image, "n_frames", 1)) if image.format != "MPO" else 1
    except Exception:  # noqa: BLE001 (what decode could read has one at least)
        return 1


def _open(data: bytes, suffix: str, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("empty file")
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    _require_true_suffix(suffix, "JPEG" if image.format == "MPO" else str(image.format))
    _require_size(max_pixels, *image.size)
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # Pillow's own conversion clips at 255


def _smaller(image: Image.Image) -> Image.Image:
    factor = math.ceil(math.sqrt(image.width * image.height / ENOUGH_PIXELS))
    if factor == 1:
        return image
    if image.mode in {"1", "P", "PA"}:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    small = image.reduce(factor)
    small.info = image.info
    return small


def _require_true_suffix(suffix: str, kind: str) -> None:
    expected = _FORMAT_OF.get(suffix.lower(), kind)
    if expected != kind:
        raise ImageError(f"named {suffix}, but holds {kind}; it is not what it seems")


def _require_size(max_pixels: int, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > max_pixels:
        raise ImageError(
            f"too large: {width}x{height} pixels; at most {max_pixels // 10**6} million are read, and "
            f"{MAX_SIDE} a side"
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"too small: {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are needed")


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """As its colour profile says it looks; an image without one, or with a damaged one, is sRGB already."""
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if ImageCms.getProfileDescription(source).startswith("sRGB"):
            return image
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted or image


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in {"I", "F"}:
        raise ImageError("32-bit pixels, whose black and white are unknown; save it with 8 or 16 bits")
    profile: bytes = image.info.get("icc_profile") or b""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode == "P":
        image = image.convert("RGB")
    image = _in_srgb(image, profile)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _reason(error: Exception) -> str:
    match error:
        case UnidentifiedImageError():
            return f"not a {', '.join(_NAMES[:-1])} or {_NAMES[-1]} image that can be read"
        case Image.DecompressionBombError():
            return f"too large; at most {MAX_PIXELS // 10**6} million pixels are read"
        case _ if "truncated" in str(error).lower():
            return "truncated"
        case _:
            return "damaged"
