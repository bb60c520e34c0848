"""DermaMNIST of MedMNIST v2 (Yang et al. 2023, doi 10.1038/s41597-022-01721-8): small images of HAM10000."""

import io
import zlib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles, open_where
from dermtune.table import SPLITS, Split
from dermtune_bundle.decode import MIN_SIDE

_LABELS = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")  # by number; medmnist/info.py
_LICENSE = "CC-BY-NC-4.0"  # medmnist/info.py, 3.0.2
_ATTRIBUTION = (
    "Yang et al. 2023, doi 10.1038/s41597-022-01721-8; of HAM10000: Tschandl et al. 2018,"
    " doi 10.1038/sdata.2018.161"
)


def dermamnist(root: Root) -> list[SourceImage]:
    """List the images of the one dermamnist*.npz in a folder, of 28, 64, 128 or 224 pixels a side.

    Lesions are not given, so each image counts as one of its own. HAM10000 has several images of many
    lesions, and MedMNIST's splits may part them: the check for copies joins only copies, so that results on
    its test images are too good.

    Images of fewer than 32 pixels a side are enlarged by a whole factor, each pixel to a block of equal ones,
    so that they can be read. The whole file is held in memory until the list is dropped: 24 MB at 28 pixels,
    1.5 GB at 224; a worker process gets only the pixels of its own images.

    Raises:
        SourceError: there is not exactly one such file, or it is damaged or laid out in another way.
    """
    files = SourceFiles(root)
    found = [name for name in files.names if fnmatch(name, "dermamnist*.npz") and "/" not in name]
    if len(found) != 1:
        raise SourceError(
            f"{root}: {len(found)} files dermamnist*.npz; set ingest.path to a folder with exactly one"
        )
    where = files.where(found[0])
    if where is None:
        raise SourceError(f"{root / found[0]}: a link that leads out of the folder; put the file there")
    try:
        # opened here, for numpy leaves a file that it cannot read open
        with open_where(where) as file, np.load(file, allow_pickle=False) as arrays:
            return [image for split in SPLITS for image in _split(arrays, split, found[0])]
    except (OSError, BadZipFile, EOFError, KeyError, MemoryError, TypeError, ValueError, zlib.error) as error:
        raise SourceError(
            f"{root / found[0]}: not a readable DermaMNIST: {error}; download it again"
        ) from error


def _split(arrays: "np.lib.npyio.NpzFile", split: Split, file: str) -> Iterator[SourceImage]:
    pixels: NDArray[np.uint8] = arrays[f"{split}_images"]  # (N, S, S, 3)
    labels: NDArray[np.integer] = arrays[f"{split}_labels"].reshape(-1)  # of (N, 1)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:  # noqa: PLR2004
        raise ValueError(f"{split}_images is {pixels.dtype} {pixels.shape}, not uint8 (N, S, S, 3)")
    if labels.dtype.kind not in "iu" or len(labels) != len(pixels):
        raise ValueError(f"{split}_labels is {labels.dtype} {labels.shape}, not a number an image")
    for place, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        image_id = f"dermamnist-{split}-{place:05}"
        yield SourceImage(
            image_id=image_id,
            lesion_id=image_id,
            label=_LABELS[label] if 0 <= label < len(_LABELS) else str(label),
            path=f"{file}/{split}/{place:05}.png",
            content=partial(_png, image),
            split=split,
            license=_LICENSE,
            attribution=_ATTRIBUTION,
        )


def _png(pixels: NDArray[np.uint8]) -> bytes:
    factor = -(-MIN_SIDE // min(pixels.shape[:2]))  # 1 where it is large enough
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1)).save(file, "PNG")
    return file.getvalue()
