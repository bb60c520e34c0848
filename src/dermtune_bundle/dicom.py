"""DICOM files to pixels: photographs and secondary captures; nothing but the pixels is kept."""

import io
import logging
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

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
logging.getLogger("pydicom").disabled = True

_DEFLATED: Final = "1.2.840.10008.1.2.1.99"  # the whole file packed: its size is known only once unpacked


def is_dicom(data: bytes) -> bool:
    """Does a file begin as DICOM files do (PS3.10, section 7.1)?"""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode the first frame of a DICOM file to RGB.

    YBR becomes RGB, palettes are looked up, MONOCHROME1 is turned, a window is applied where the file has one
    and more than 8 bits are scaled to 8.

    Args:
        data: the whole file.
        max_pixels: more are refused before one is decoded.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ImageError: it is another kind of DICOM file, too large, or compressed in a way that is not read.
        Exception: pydicom raises nearly anything on damaged files.
    """
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_color_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    meta = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=[]).file_meta
    if meta.get("TransferSyntaxUID") == _DEFLATED:
        raise ImageError("DICOM deflated as a whole, which is not read; save it in another transfer syntax")
    dataset = dcmread(io.BytesIO(data))
    kind = dataset.get("SOPClassUID", "")
    if kind not in STORAGE:
        raise ImageError(f"DICOM, but {_name(kind)}: not a photograph nor a secondary capture")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise ImageError(
            f"too large: {columns}x{rows} pixels; at most {max_pixels // 10**6} million are read"
        )
    try:
        pixels = pixel_array(dataset, index=0)
    except (NotImplementedError, RuntimeError) as error:
        if "plugin" in str(error) or "not supported" in str(error):
            name = _name(dataset.file_meta.TransferSyntaxUID)
            raise ImageError(
                f"DICOM compressed as {name}, which is not read; save it in another way"
            ) from None
        raise
    interpretation = str(dataset.PhotometricInterpretation)
    if interpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        return _to_bytes(pixels, low=0, high=2 ** (8 * pixels.dtype.itemsize) - 1)
    if pixels.ndim == 3:  # noqa: PLR2004 (H, W, 3)
        return _to_bytes(pixels, low=0, high=2 ** int(dataset.BitsStored) - 1)
    low, high = _span(dataset)
    windowed = np.asarray(apply_voi_lut(pixels, dataset), np.float64)
    if interpretation == "MONOCHROME1":
        windowed = low + high - windowed
    grey = _to_bytes(windowed, low=low, high=high)
    return np.stack([grey, grey, grey], axis=-1)


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
    scaled = (np.asarray(pixels, np.float64) - low) * (255 / (high - low))
    return np.clip(np.round(scaled), 0, 255).astype(np.uint8)
