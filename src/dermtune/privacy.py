"""What says who a picture is of: out of the file with it, and a pseudonym in the patient's place.

What is stored of an image file is what its pixels need, by lists of what is kept: what a camera, a phone or
a hospital writes beside them (names, dates, places, serial numbers, small copies, further pictures) is left
out. What is burned into the pixels stays: see burned_text.py.
"""

import hashlib
import hmac
import io
import json
import re
import secrets
import struct
import zlib
from contextlib import suppress
from itertools import count, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.ExifTags import Base

from dermtune.errors import DataError
from dermtune_bundle.decode import ENOUGH_PIXELS, FORMATS, decode, quiet
from dermtune_bundle.dicom import is_dicom
from dermtune_bundle.errors import ImageError
from dermtune_bundle.files import atomic_path

_MAX_PROFILE: Final = 1 << 20  # bytes; those of cameras have a few thousand
_TURNED: Final = frozenset(range(2, 9))  # EXIF orientations that are not upright

_SOI: Final = b"\xff\xd8"
_EOI: Final = b"\xff\xd9"
_SOS: Final = b"\xff\xda"
_NOTES: Final = frozenset(bytes([0xFF, code]) for code in (*range(0xE0, 0xF0), 0xFE))  # APPn and COM
_SEGMENTS: Final = _NOTES | {  # SOF0 to SOF15, DHT and DAC among them; SOS, DQT and DRI
    bytes([0xFF, code]) for code in (*range(0xC0, 0xC8), *range(0xC9, 0xD0), 0xDA, 0xDB, 0xDD)
}
_JFIF: Final = re.compile(rb"\xff\xe0..(JFIF\0.{7})..", re.DOTALL)
_ADOBE: Final = re.compile(rb"\xff\xee..(Adobe.{7})", re.DOTALL)
_ICC: Final = re.compile(rb"\xff\xe2..ICC_PROFILE\0..", re.DOTALL)
# What is neither a stuffed byte nor a restart marker. Filling (FF FF) is one too, though allowed: where it is
# not followed by a marker, libjpeg decodes the block otherwise if few bytes follow.
_SCAN_END: Final = re.compile(rb"\xff[^\x00\xd0-\xd7]")

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_CHUNKS: Final = {
    b"IHDR": 13,
    b"PLTE": 768,
    b"IDAT": 1 << 31,
    b"IEND": 0,
    b"tRNS": 256,
    b"gAMA": 4,
    b"cHRM": 32,
    b"sRGB": 1,
    b"iCCP": 2 * _MAX_PROFILE,
    b"sBIT": 4,
    b"bKGD": 6,
    b"pHYs": 9,
}
"""What is kept of a PNG, and the most bytes that it may have: what is longer holds something else too."""

_KEY: Final = re.compile(rb"([0-9a-f]{64})\s*")


def scrub(data: bytes, pixels: NDArray[np.uint8]) -> tuple[bytes, str]:
    """An image file with nothing in it but what its pixels need.

    A JPEG keeps its compressed data, a PNG its pixels as they are stored; all else, and what has an unusual
    structure, becomes a PNG of the decoded pixels. `decode` gives the same pixels of both, bit for bit. A
    colour profile stays as it is, and so does what someone hides within the compressed data.

    Args:
        data: the whole file.
        pixels: uint8 (H, W, 3), what `decode` gives of it.

    Returns:
        The new file, and its suffix, `.jpg` or `.png`.
    """
    if not is_dicom(data):
        with quiet, Image.open(io.BytesIO(data), formats=FORMATS) as image:
            jpeg = _scrub_jpeg(data, image) if image.format in {"JPEG", "MPO"} else None
            png = _scrub_png(data, image) if image.format == "PNG" else None
        if jpeg and not is_dicom(jpeg):  # four letters at one place make a DICOM file
            return jpeg, ".jpg"
        if png and _shows(png, pixels):
            return png, ".png"
    return _to_png(pixels), ".png"


def pseudonym(key: bytes, *, source: str, patient_id: str) -> str:
    """What to call a patient: always the same, and without the key no one can tell of whom, nor try names.

    Args:
        key: as `read_key` gives it.
        source: whose patient; two sources may number theirs alike.
        patient_id: what the source calls the patient.

    Returns:
        "P" and 24 hex digits.
    """
    asked = json.dumps([source, patient_id]).encode()
    return "P" + hmac.new(key, asked, hashlib.sha256).hexdigest()[:24]


def read_key(path: Path) -> bytes:
    """The 32 bytes that pseudonyms are made with, of a file of 64 hex digits that its owner alone may read.

    Where there is no such file, one is made; of several processes at once all get the same key.

    Raises:
        DataError: the file is damaged or can't be read.
    """
    try:
        if not path.exists():
            _make_key(path)
        found = _KEY.fullmatch(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; the key of the pseudonyms is kept there") from error
    if found is None:
        raise DataError(
            f"{path}: not a key, which is 64 hex digits; restore it, for a new one gives patients new names"
        )
    return bytes.fromhex(found[1].decode())


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:  # no one else may look into it
        made = Path(folder) / path.name
        with atomic_path(made) as temporary:
            temporary.write_text(secrets.token_hex(32) + "\n")
        made.chmod(0o600)
        with suppress(FileExistsError):  # another process was first
            path.hardlink_to(made)


def _scrub_jpeg(data: bytes, image: Image.Image) -> bytes | None:
    """Without decoding it; None where anything is unusual. Source: ITU-T T.81, annex B."""
    orientation = image.getexif().get(Base.Orientation, 1)
    profile: bytes = image.info.get("icc_profile") or b""
    kept, at, profile_bytes = [_SOI], len(_SOI), 0
    while (marker := data[at : at + 2]) != _EOI:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker not in _SEGMENTS or not at + 4 <= end <= len(data):
            return None
        if marker == _SOS:
            scan = _SCAN_END.search(data, end)
            if scan is None:
                return None
            end = scan.start()
        segment = data[at:end]
        kept.append(_needed(segment) if marker in _NOTES else segment)
        if found := _ICC.match(segment):
            profile_bytes += len(segment) - found.end()
        at = end
    if profile_bytes != len(profile) or (profile and not _is_profile(profile)):
        return None
    if orientation in _TURNED:
        kept.insert(2 if _JFIF.match(kept[1]) else 1, _turned(orientation))
    return b"".join([*kept, _EOI])


def _needed(note: bytes) -> bytes:
    """What a decoder asks of a note to tell colours: whole, cut to its known fields, or nothing."""
    if jfif := _JFIF.match(note):
        return b"\xff\xe0\0\x10" + jfif[1] + b"\0\0"  # no small copy
    if adobe := _ADOBE.match(note):
        return b"\xff\xee\0\x0e" + adobe[1]
    return note if _ICC.match(note) else b""


def _turned(orientation: int) -> bytes:
    """A note (APP1) with an EXIF orientation and nothing else."""
    tags = struct.pack(">2sHLHHHLHHL", b"MM", 42, 8, 1, Base.Orientation, 3, 1, int(orientation), 0, 0)
    return b"\xff\xe1" + struct.pack(">H", 8 + len(tags)) + b"Exif\0\0" + tags


def _is_profile(profile: bytes) -> bool:
    """Is it a colour profile and no more, of a usual size?"""
    if len(profile) > _MAX_PROFILE or int.from_bytes(profile[:4]) != len(profile):
        return False
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(profile))
    except (OSError, ValueError):
        return False
    return True


def _scrub_png(data: bytes, image: Image.Image) -> bytes | None:
    """Its listed chunks; None where anything is unusual. Source: PNG, third edition, section 5."""
    profile: bytes = image.info.get("icc_profile") or b""
    kept, kinds, at = [_PNG], [b""], len(_PNG)
    while kinds[-1] != b"IEND":
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        kinds.append(kind)
        end = at + size + 12  # with its length, its kind and its checksum
        if end > len(data) or size > _CHUNKS.get(kind, size):
            return None
        if kind == b"iCCP" and not _is_profile(profile):
            return None
        if kind == b"iCCP":  # the name of a profile is free text
            kept.append(_chunk(kind, b"icc\0\0" + zlib.compress(profile)))
        elif kind in _CHUNKS:
            kept.append(data[at:end])
        at = end
    runs = [kind for kind, _ in groupby(kinds)]
    return b"".join(kept) if runs.count(b"IDAT") == 1 else None  # of several, only the first is shown


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def _shows(data: bytes, pixels: NDArray[np.uint8]) -> bool:
    try:
        return np.array_equal(decode(data, name=""), pixels)
    except ImageError:
        return False


def _to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Where `decode` would make them smaller, each as a block of equal ones that it makes one of again."""
    height, width = pixels.shape[:2]
    for factor in count(1):
        rows, columns = factor * (height - 1) + 1, factor * (width - 1) + 1
        if rows * columns <= factor**2 * ENOUGH_PIXELS:
            break
    blocks = pixels.repeat(factor, axis=0)[:rows].repeat(factor, axis=1)[:, :columns]
    file = io.BytesIO()
    Image.fromarray(blocks).save(file, "PNG")
    return file.getvalue()
