"""DICOM files to pixels: photographs and secondary captures; nothing but the pixels is kept."""

import io
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dermtune_bundle.errors import ImageError

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES: Final = frozenset({".dcm", ".dicom"})
STORAGE: Final = {
    "1.2.840.10008.5.1.4.1.1.77.1.4": "VL Photographic Image",
    "1.2.840.10008.5.1.4.1.1.77.1.7": "Dermoscopic Photography Image",
    "1.2.840.10008.5.1.4.1.1.7": "Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.2": "Multi-frame Grayscale Byte Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.3": "Multi-frame Grayscale Word Secondary Capture Image",
    "1.2.840.10008.5.1.4.1.1.7.4": "Multi-frame True Color Secondary Capture Image",
}
"""SOP classes that are read (DICOM PS3.4, annex B.5)."""
# Its warnings quote what a file holds, such as a patient's name, and would end on standard error.
for _logger in map(logging.getLogger, ("pydicom", "highdicom")):
    _logger.propagate = False
    _logger.addHandler(logging.NullHandler())

_ROWS: Final = 256
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"  # a transfer syntax


def is_dicom(data: bytes) -> bool:
    """Does a file begin as DICOM files do (PS3.10, section 7.1)?"""
    return data[128:132] == b"DICM"


def is_deflated(data: bytes) -> bool:
    """Is a DICOM file packed as a whole? pydicom unpacks all of it, however large, to read its header."""
    return _DEFLATED in data


def count_frames(data: bytes) -> int:
    """How many images a DICOM file holds that is not deflated."""
    from pydicom import dcmread

    found = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    return int(found.get("NumberOfFrames") or 1)


def decode_dicom(data: bytes, *, require_size: Callable[[int, int], None]) -> tuple[NDArray[np.uint8], bytes]:
    """Decode the first frame of a DICOM file to RGB.

    YBR becomes RGB, palettes are looked up, MONOCHROME1 is turned, a window is applied where the file has one
    and more than 8 bits are scaled to 8.

    Args:
        data: the whole file.
        require_size: raises for a width and a height that are not read, before a pixel is decoded.

    Returns:
        uint8 (H, W, 3), RGB, and the colour profile (ICC) of colour images, or nothing.

    Raises:
        ImageError: it is another kind of DICOM file, too large, or compressed in a way that is not read.
        Exception: pydicom raises nearly anything on damaged files.
    """
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_color_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    if is_deflated(data):
        raise ImageError("DICOM deflated as a whole, which is not read; save it in another transfer syntax")
    dataset = dcmread(io.BytesIO(data))
    kind = dataset.get("SOPClassUID", "")
    if kind not in STORAGE:
        raise ImageError(f"DICOM, but {_name(kind)}: not a photograph nor a secondary capture")
    require_size(int(dataset.Columns), int(dataset.Rows))
    _require_true_frame(dataset)
    try:
        pixels = pixel_array(dataset, index=0)
    except (NotImplementedError, RuntimeError):
        if not _is_read(dataset):
            name = _name(dataset.file_meta.TransferSyntaxUID)
            raise ImageError(
                f"DICOM compressed as {name}, which is not read; save it in another way"
            ) from None
        raise
    interpretation = str(dataset.PhotometricInterpretation)
    dark_is_high = interpretation == "MONOCHROME1"
    profile = bytes(dataset.get("ICCProfile") or b"")
    if interpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        return _to_bytes(pixels, low=0, high=2 ** (8 * pixels.dtype.itemsize) - 1), profile
    if pixels.ndim == 3:  # noqa: PLR2004 (H, W, 3)
        return _to_bytes(pixels, low=0, high=2 ** int(dataset.BitsStored) - 1), profile
    low, high = _span(dataset)
    grey = np.empty(pixels.shape, np.uint8)
    for rows in _slabs(len(pixels)):
        windowed = np.asarray(apply_voi_lut(pixels[rows], dataset), np.float64)
        grey[rows] = _to_bytes(low + high - windowed if dark_is_high else windowed, low=low, high=high)
    return np.stack([grey, grey, grey], axis=-1), b""


def _name(uid: str) -> str:
    """The standard's name of an identifier; never what a damaged file has in its place."""
    from pydicom.uid import UID

    name = UID(uid).name
    return name if name != uid else "of an unknown kind"


def _span(dataset: "Dataset") -> tuple[int, int]:
    """Black and white of a grey image."""
    bits = int(dataset.BitsStored)
    if "VOILUTSequence" in dataset:
        return 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    signed = int(dataset.PixelRepresentation) == 1
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _to_bytes(pixels: NDArray[np.generic], *, low: int, high: int) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8 and (low, high) == (0, 255):
        return np.ascontiguousarray(pixels)
    found = np.empty(pixels.shape, np.uint8)
    for rows in _slabs(len(pixels)):
        scaled = (np.asarray(pixels[rows], np.float64) - low) * (255 / (high - low))
        found[rows] = np.clip(np.round(scaled), 0, 255)
    return found


def _slabs(rows: int) -> Iterator[slice]:
    """Some rows at a time, so that no copy in float64 is of the whole image."""
    return (slice(start, start + _ROWS) for start in range(0, rows, _ROWS))


def _require_true_frame(dataset: "Dataset") -> None:
    """A compressed frame has a size of its own, which may be far larger than the one that the file states."""
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000, JPEG2000Lossless, JPEGTransferSyntaxes

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in (*JPEGTransferSyntaxes, JPEG2000Lossless, JPEG2000):
        return
    frame = get_frame(dataset.PixelData, 0, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            size = image.size
    except UnidentifiedImageError:
        return  # the decoder says why
    if size != (int(dataset.Columns), int(dataset.Rows)):
        raise ImageError("damaged: its frame has another size than it states")


def _is_read(dataset: "Dataset") -> bool:
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return bool(get_decoder(dataset.file_meta.TransferSyntaxUID).is_available)
    except NotImplementedError:
        return False
