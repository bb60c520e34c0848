"""Derm7pt, the seven-point checklist (Kawahara et al. 2019, doi 10.1109/JBHI.2018.2824327): `release_v0`."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.names import NamedFiles
from dermtune.sources.rows import Row, known, read_rows, sex
from dermtune.table import Split

_SPLITS: Mapping[Split, str] = {
    "train": "train_indexes.csv",
    "val": "valid_indexes.csv",
    "test": "test_indexes.csv",
}
_ATTRIBUTION = "Kawahara et al. 2019, doi 10.1109/JBHI.2018.2824327"


def derm7pt(root: Root) -> list[SourceImage]:
    """List the dermoscopic images: the rows of meta.csv, then any image that it does not name.

    Each case is a lesion, with one dermoscopic image and mostly a clinical one. The clinical ones, which
    meta.csv names in its column `clinic`, are not dermoscopic and are left out. Patients are not given.

    Raises:
        SourceError: a table is missing or lacks a column, or a split names a row that meta.csv lacks.
    """
    files = SourceFiles(root)
    table = files.require("meta.csv")
    required = ("case_num", "diagnosis", "clinic", "derm")
    rows = read_rows(files.read(table), name=str(root / table), required=required)
    splits = _splits(files, len(rows))
    images = NamedFiles(files, files.images())
    listed = [_image(row, images, splits.get(number)) for number, row in enumerate(rows)]
    named = {images.find(row[column]) for row in rows for column in ("derm", "clinic")}
    unlisted = [name for name in files.images() if name not in named]
    return listed + [
        SourceImage(_id(name), _id(name), "", name, files.content(name), attribution=_ATTRIBUTION)
        for name in unlisted
    ]


def _splits(files: SourceFiles, rows: int) -> dict[int, Split]:
    """The split of each row, counted from 0."""
    found: dict[int, Split] = {}
    for split, table in _SPLITS.items():
        name = files.require(table)
        for cell in read_rows(files.read(name), name=str(files.root / name), required=["indexes"]):
            index = cell["indexes"]
            if not index.isdecimal() or int(index) >= rows:
                raise SourceError(f"{files.root / name}: {index!r} is no row of meta.csv, which has {rows}")
            if found.setdefault(int(index), split) != split:
                raise SourceError(f"{files.root / name}: {index} is in {found[int(index)]} too")
    return found


def _image(row: Row, images: NamedFiles, split: Split | None) -> SourceImage:
    return SourceImage(
        image_id=_id(row["derm"]) or f"case-{row['case_num']}",
        lesion_id=row["case_num"],
        label=known(row["diagnosis"]) or "",
        path=images.find(row["derm"]) or row["derm"],
        content=images.content(row["derm"]),
        sex=sex(row.get("sex")),
        site=known(row.get("location")),
        split=split,
        attribution=_ATTRIBUTION,
    )


def _id(path: str) -> str:
    """Of `…/NEL/Nel026.jpg`: `NEL-Nel026`; file names alone are not known to be unique."""
    whole = PurePosixPath(path.replace("\\", "/"))
    return "-".join(part for part in (whole.parent.name, whole.stem) if part)
