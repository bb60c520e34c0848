"""ISIC 2024, SLICE-3D (Kurtansky et al. 2024, doi 10.1038/s41597-024-03743-w).

Its images are crops of 3D photographs of the whole body, as by a phone, and not dermoscopic. Kaggle gives
one table, and the images both as HDF5 and as files; the challenge's own page gives three tables and a .zip.
"""

import errno
from functools import lru_cache, partial
from pathlib import Path

import h5py
import numpy as np

from dermtune.errors import SourceError
from dermtune.places import Root, StoredFile
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles, open_where
from dermtune.sources.isic import most_specific, unlisted
from dermtune.sources.rows import Row, known, number, read_rows, sex
from dermtune_bundle.decode import MAX_BYTES

_KAGGLE = "train-metadata.csv"
_TRUTH = "ISIC_2024*Training_GroundTruth.csv"
_OTHERS = ("ISIC_2024*Training_Supplement.csv", "metadata.csv")
_IMAGES = "train-image.hdf5"
_COLUMNS = frozenset(
    {
        *("isic_id", "target", "malignant", "patient_id", "lesion_id", "age_approx", "sex"),
        *("anatom_site_general", "iddx_1", "iddx_2", "iddx_3", "iddx_4", "iddx_5"),
        *("copyright_license", "attribution"),
    }
)
_Packed = tuple[str, Path | StoredFile]  # the name of the HDF5 file, and where it is
_FIRST: dict[float | None, str] = {1.0: "Malignant", 0.0: "Benign"}


def isic2024(root: Root) -> list[SourceImage]:
    """List SLICE-3D's images: the rows of its table, then any image that it lacks.

    Raises:
        SourceError: the table is missing or lacks a column, or the HDF5 file cannot be read.
    """
    files = SourceFiles(root)
    table = _rows(files)
    packed = _packed(files)
    inside = _members(files, *packed) if packed else {}
    images = [_image(files, row, packed if row["isic_id"] in inside else None) for row in table]
    named = {row["isic_id"] for row in table}
    images += [_image(files, {"isic_id": name}, packed) for name in inside if name not in named]
    return images + unlisted(files, images)


def _rows(files: SourceFiles) -> list[Row]:
    if kaggle := files.find(_KAGGLE):
        return _read(files, kaggle, "target")
    truth = files.find(_TRUTH)
    if truth is None:
        raise SourceError(
            f"{files.root}: no {_KAGGLE} or ISIC_2024_Training_GroundTruth.csv here; set ingest.path to the"
            " source's folder"
        )
    more: dict[str, Row] = {}
    for other in filter(None, map(files.find, _OTHERS)):
        for row in _read(files, other):
            more.setdefault(row["isic_id"], {}).update({name: cell for name, cell in row.items() if cell})
    return [row | more.get(row["isic_id"], {}) for row in _read(files, truth, "malignant")]


def _read(files: SourceFiles, name: str, *required: str) -> list[Row]:
    # of 55 columns; 400,000 rows of all would take gigabytes
    return read_rows(
        files.read(name), name=str(files.root / name), required=("isic_id", *required), kept=_COLUMNS
    )


def _packed(files: SourceFiles) -> _Packed | None:
    name = files.find(_IMAGES)
    if name is None:
        return None
    if where := files.where(name):
        return name, where
    if files.images():
        return None
    raise SourceError(
        f"{files.root / name}: not read inside a .zip, or where a link leads out of the folder; put it there"
    )


def _members(files: SourceFiles, name: str, where: Path | StoredFile) -> dict[str, None]:
    """What the file's parts are called, in its order."""
    try:
        with open_where(where) as file, h5py.File(file, "r") as opened:
            return dict.fromkeys(opened)
    except OSError as error:
        raise SourceError(
            f"{files.root / name}: not an HDF5 file that can be read: {error}; download it again"
        ) from error


def _read_member(where: Path | StoredFile, name: str) -> bytes:
    try:
        opened = _open(where)
        # links in the file may name other files
        found = opened[name] if isinstance(opened.get(name, getlink=True), h5py.HardLink) else None
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
            raise PermissionError(errno.EPERM, f"no image, but a link, in {where.name}")
        if not 0 < found.nbytes <= MAX_BYTES:
            raise OSError(errno.EFBIG, f"empty or over {MAX_BYTES >> 20} MiB")
        return np.asarray(found[()]).tobytes()
    except (KeyError, RuntimeError, ValueError) as error:
        raise OSError(errno.EIO, f"damaged in {where.name}") from error


@lru_cache(maxsize=4)
def _open(where: Path | StoredFile) -> h5py.File:
    """Opened once a process: to open a file of 400,000 parts takes longer than to read an image."""
    return h5py.File(where if isinstance(where, Path) else open_where(where), "r")


def _image(files: SourceFiles, row: Row, packed: _Packed | None) -> SourceImage:
    image_id = row["isic_id"]
    name = f"{packed[0]}/{image_id}" if packed else files.image(image_id)
    inside = partial(_read_member, packed[1], image_id) if packed else None
    target = number(row.get("target", row.get("malignant")))
    return SourceImage(
        image_id=image_id,
        lesion_id=known(row.get("lesion_id")) or image_id,
        label=most_specific(row, "iddx_", known(row.get("iddx_1")) or _FIRST.get(target, "")),
        path=name or f"{image_id}.jpg",
        content=inside or files.content(name),
        patient_id=known(row.get("patient_id")),
        age=number(row.get("age_approx")),
        sex=sex(row.get("sex")),
        site=known(row.get("anatom_site_general")),
        license=known(row.get("copyright_license")),
        attribution=known(row.get("attribution")),
    )
