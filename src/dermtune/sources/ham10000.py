"""HAM10000 (Tschandl et al. 2018, doi 10.1038/sdata.2018.161): official folders, or `images` and `masks`."""

import csv
import io
import re
from functools import partial
from pathlib import Path

from dermtune.errors import SourceError
from dermtune.sources import SourceImage

_TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata.tab", "HAM10000_metadata")
_FOLDERS = ("images", "HAM10000_images_part_1", "HAM10000_images_part_2")
_MASKS = ("masks", "HAM10000_segmentations_lesion_tschandl")
_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]+)?")
_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")


def ham10000(root: Path) -> list[SourceImage]:
    """List HAM10000's images: the rows of its table, then any image that the table lacks.

    Raises:
        SourceError: the table or the image folders are missing, or the table lacks a column.
    """
    table = next((root / name for name in _TABLES if (root / name).is_file()), None)
    if table is None:
        raise SourceError(f"{root}: no {_TABLES[0]}; set ingest.path to HAM10000's folder")
    files = {path.stem: path for name in _FOLDERS for path in sorted((root / name).glob("*.[jJ][pP][gG]"))}
    if not files:
        raise SourceError(f"{root}: no .jpg in {', '.join(_FOLDERS)}")
    try:
        text = table.read_text(encoding="utf-8-sig")
        # Harvard Dataverse gives the table as .tab too
        delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
        reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, restval="")
        if lacking := [name for name in _COLUMNS if name not in (reader.fieldnames or [])]:
            raise SourceError(f"{table}: no column {', '.join(lacking)}")
        rows = [_image(root, row, files) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{table}: not a readable table: {error}") from error
    listed = {image.image_id for image in rows}
    return rows + [_unlisted(root, path) for stem, path in files.items() if stem not in listed]


def _image(root: Path, row: dict[str, str], files: dict[str, Path]) -> SourceImage:
    image_id = row["image_id"]
    path = files.get(image_id, root / _FOLDERS[0] / f"{Path(image_id).name}.jpg")
    masks = (root / name / f"{Path(image_id).name}_segmentation.png" for name in _MASKS)
    mask = next((one for one in masks if one.is_file()), None)
    return SourceImage(
        image_id=image_id,
        lesion_id=row["lesion_id"],
        label=row["dx"],
        path=path.relative_to(root).as_posix(),
        content=partial(Path.read_bytes, path),
        age=float(row["age"]) if _NUMBER.fullmatch(row["age"]) else None,
        sex=row["sex"] if row["sex"] in {"female", "male"} else None,
        site=row["localization"] if row["localization"] not in {"", "unknown"} else None,
        dx_type=row["dx_type"] or None,
        mask=partial(Path.read_bytes, mask) if mask else None,
    )


def _unlisted(root: Path, path: Path) -> SourceImage:
    return SourceImage(
        path.stem, path.stem, "", path.relative_to(root).as_posix(), partial(Path.read_bytes, path)
    )
