"""A folder of images with a table: for data of one's own."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import fields

import pandas as pd

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.names import SPLIT_WORDS, NamedFiles, image_ids, plain_id
from dermtune.sources.rows import Row, known, number, read_rows, sex, skin_type

_FIELDS = (*(one.name for one in fields(SourceImage) if one.name not in {"content", "source"}),)
_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


def listed(root: Root, columns: Mapping[str, str]) -> list[SourceImage]:
    """List the images of a folder: the rows of its table, then any image that the table lacks.

    Args:
        root: holds exactly one *.csv, *.tsv, *.txt or *.parquet, and images anywhere below or in .zip files.
        columns: from a field of `SourceImage` to the table's column of it; a field that is not named has
            the column of its own name, where there is one. `table` names the table where there are several.
            `path`, or else `image_id`, names the image's file, and `mask` its mask's: by its path or the end
            of it, with or without the suffix. Lesions' and patients' ids are taken for unique in the table.

    Raises:
        SourceError: `columns` names a field or a column that there is not; the table is not readable, has no
            label, neither an image_id nor a path, or a split that is none of train, val and test.
    """
    files = SourceFiles(root)
    table = _table(files, columns.get("table"))
    rows = _read(files, table)
    rows = list(_renamed(rows, {name: column for name, column in columns.items() if name != "table"}, table))
    everything = NamedFiles(files, files.images())
    masks = {everything.find(row["mask"]) for row in rows if row["mask"]}
    names = [name for name in files.images() if name not in masks]
    images, ids = NamedFiles(files, names), image_ids(names)
    listed = [
        _image(row, f"{table}, row {place}", images, ids, everything)
        for place, row in enumerate(rows, start=1)
    ]
    found = {image.path for image in listed}
    unlisted = [name for name in names if name not in found]
    return listed + [SourceImage(ids[name], ids[name], "", name, files.content(name)) for name in unlisted]


def _table(files: SourceFiles, wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in files.names:
            raise SourceError(f"ingest.columns.table: no {wanted} in {files.root}")
        return wanted
    found = [name for name in files.names if "/" not in name and name.lower().endswith(_SUFFIXES)]
    if len(found) != 1:
        raise SourceError(
            f"{files.root}: {len(found)} tables ({', '.join(found[:5]) or ', '.join(_SUFFIXES)}); one is"
            " needed: set ingest.path to its folder, or ingest.columns.table to its name"
        )
    return found[0]


def _read(files: SourceFiles, table: str) -> list[Row]:
    data = files.read(table)
    if not table.lower().endswith(".parquet"):
        return read_rows(data, name=str(files.root / table))
    try:
        frame = pd.read_parquet(io.BytesIO(data))
    except Exception as error:  # damaged files make pyarrow raise nearly anything
        raise SourceError(f"{files.root / table}: not a readable table: {error}") from error
    names = [str(column) for column in frame]
    if len(set(names)) < len(names):
        raise SourceError(f"{files.root / table}: a column occurs twice; its columns are {', '.join(names)}")
    cells = frame.astype(object).where(frame.notna(), "").to_numpy().tolist()
    return [dict(zip(names, map(_cell, row), strict=True)) for row in cells]


def _cell(value: object) -> str:
    """As it would stand in a CSV; a column of whole numbers with gaps comes as floats."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def _renamed(rows: list[Row], columns: Mapping[str, str], table: str) -> Iterator[Row]:
    """Rows with the fields' own names, all of them; what is not given is empty."""
    if not rows:
        raise SourceError(f"{table}: no rows")
    there = ", ".join(rows[0])
    for name, column in columns.items():
        if name not in _FIELDS:
            raise SourceError(f"ingest.columns: no field {name}; the fields are {', '.join(_FIELDS)}, table")
        if column not in rows[0]:
            raise SourceError(f"ingest.columns.{name}: {table} has no column {column!r}, but {there}")
    given = {name: columns.get(name, name) for name in _FIELDS if columns.get(name, name) in rows[0]}
    if "label" not in given or not {"image_id", "path"} & set(given):
        lacking = "label" if "label" not in given else "image_id or path"
        raise SourceError(f"{table}: no column {lacking}, but {there}; say in ingest.columns which it is")
    for row in rows:
        yield dict.fromkeys(_FIELDS, "") | {name: row[column] for name, column in given.items()}


def _image(
    row: Row, place: str, images: NamedFiles, ids: Mapping[str, str], masks: NamedFiles
) -> SourceImage:
    called = row["path"] or row["image_id"]
    name = images.find(called)
    image_id = row["image_id"] or ids.get(name or "", plain_id(called or place))
    if row["split"] and row["split"].lower() not in SPLIT_WORDS:
        raise SourceError(
            f"{place}: split {row['split']!r} is none of {', '.join(SPLIT_WORDS)}; mend it or leave it empty"
        )
    return SourceImage(
        image_id=image_id,
        lesion_id=known(row["lesion_id"]) or image_id,
        label=known(row["label"]) or "",
        path=name or called or place,
        content=images.content(called),
        patient_id=known(row["patient_id"]),
        age=number(row["age"]),
        sex=sex(row["sex"]),
        site=known(row["site"]),
        dx_type=known(row["dx_type"]),
        skin_tone=skin_type(row["skin_tone"]),
        mask=masks.content(row["mask"]) if row["mask"] else None,
        split=SPLIT_WORDS.get(row["split"].lower()),
        license=known(row["license"]),
        attribution=known(row["attribution"]),
    )
