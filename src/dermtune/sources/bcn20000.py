"""BCN20000 (Hernández-Pérez et al. 2024): as figshare or as the ISIC Archive gives it.

figshare has a table and a folder of images for training and for test each; the archive has one table.
Folders and their .zip files count alike.
"""

from pathlib import PurePosixPath

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.isic import confirmed_by, most_specific, read_table, unlisted
from dermtune.sources.names import SPLIT_WORDS
from dermtune.sources.rows import Row, known, number, sex

ATTRIBUTION = "Hernández-Pérez et al. 2024, doi 10.1038/s41597-024-03387-w"

_FIGSHARE = ("bcn_20k_train.csv", "bcn_20k_test.csv")
_ARCHIVE = ("bcn20000_metadata*.csv", "metadata.csv")
_IDS = ("bcn_filename", "isic_id")


def bcn20000(root: Root) -> list[SourceImage]:
    """List BCN20000's images: the rows of its tables, then any image that they lack.

    Where images of the official test set are there with their diagnoses, the official split is given.

    Raises:
        SourceError: there is no table, or one has neither `bcn_filename` nor `isic_id`.
    """
    files = SourceFiles(root)
    tables = [name for one in _FIGSHARE if (name := files.find(one))] or [files.require(*_ARCHIVE)]
    rows = [row for name in tables for row in _rows(files, name)]
    has_test = any(
        SPLIT_WORDS.get(row.get("split", "").casefold()) == "test"
        and _label(row)
        and files.image(row["image"])
        for row in rows
    )
    images = [_image(files, row, has_split=has_test) for row in rows]
    return images + unlisted(files, images, attribution=ATTRIBUTION)


def _rows(files: SourceFiles, name: str) -> list[Row]:
    """A table's rows, with the image's file or id in a column `image` as well."""
    rows = read_table(files, name, ())
    columns = [*rows[0]] if rows else [*_IDS]
    column = next((one for one in _IDS if one in columns), None)
    if column is None:
        raise SourceError(
            f"{files.root / name}: no column {' or '.join(_IDS)}; its columns are {', '.join(columns)}"
        )
    return [row | {"image": row[column]} for row in rows]


def _label(row: Row) -> str:
    first = known(row.get("diagnosis_1")) or ""
    return known(row.get("diagnosis")) or most_specific(row, "diagnosis_", first)


def _image(files: SourceFiles, row: Row, *, has_split: bool) -> SourceImage:
    image_id = PurePosixPath(row["image"]).stem
    name = files.image(row["image"])
    return SourceImage(
        image_id=image_id,
        lesion_id=known(row.get("lesion_id")) or image_id,
        label=_label(row),
        path=name or f"{image_id}.jpg",
        content=files.content(name),
        patient_id=known(row.get("patient_id")),
        age=number(row.get("age_approx")),
        sex=sex(row.get("sex")),
        site=known(row.get("anatom_site_general")),
        dx_type=confirmed_by(row.get("diagnosis_confirm_type")),
        split=SPLIT_WORDS.get(row.get("split", "").casefold()) if has_split else None,
        license=known(row.get("copyright_license")),
        attribution=known(row.get("attribution")) or ATTRIBUTION,
    )
