"""HAM10000 (Tschandl et al. 2018): as Harvard Dataverse gives it, or as ISIC 2018's task 3 does.

Folders and their .zip files count alike. Dataverse's table names lesions, ages and sites; ISIC's marks one of
seven columns, and has a second table of which images show the same lesion.
"""

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.isic import confirmed_by, one_hot, read_table, unlisted
from dermtune.sources.rows import Row, known, number, sex
from dermtune.table import Split

LICENSE = "CC-BY-NC-4.0"  # doi 10.7910/DVN/DBW86T, terms of use
ATTRIBUTION = "Tschandl, Rosendahl & Kittler 2018, doi 10.1038/sdata.2018.161"

_TABLES: dict[Split, tuple[str, ...]] = {
    "train": (
        "HAM10000_metadata.csv",
        "HAM10000_metadata.tab",
        "HAM10000_metadata",
        "ISIC2018_Task3_Training_GroundTruth.csv",
    ),
    "val": ("ISIC2018_Task3_Validation_GroundTruth.csv",),
    "test": ("ISIC2018_Task3_Test_GroundTruth.csv", "ISIC2018_Task3_Test_GroundTruth.tab"),
}
_GROUPS = "ISIC2018_Task3_*LesionGroupings.csv"
_FOLDERS = ("images", "HAM10000_images_part_1", "HAM10000_images_part_2", "ISIC2018_Task3_Training_Input")
_COLUMNS: dict[Split, tuple[str, ...]] = {
    "train": ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"),
    "val": ("image_id", "dx"),
    "test": ("image_id", "dx"),
}
_CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def ham10000(root: Root) -> list[SourceImage]:
    """List HAM10000's images: the rows of its tables, then any image that they lack.

    Where images of the official test set are there, the official split is given.

    Raises:
        SourceError: the table or the images are missing, or a table lacks a column.
    """
    files = SourceFiles(root)
    tables = {split: files.find(*names) for split, names in _TABLES.items()}
    if tables["train"] is None:
        raise SourceError(
            f"{root}: no {_TABLES['train'][0]}; set ingest.path to HAM10000's folder, or ISIC 2018 task 3's"
        )
    if not files.images():
        raise SourceError(f"{root}: no .jpg in {', '.join(_FOLDERS)}")
    parts = {split: _rows(files, name, _COLUMNS[split]) for split, name in tables.items() if name}
    has_test = any(files.image(row["image_id"]) for row in parts.get("test", []))
    rows = [_image(files, row, split if has_test else None) for split, part in parts.items() for row in part]
    return rows + unlisted(files, rows, license=LICENSE, attribution=ATTRIBUTION)


def _rows(files: SourceFiles, name: str, required: tuple[str, ...]) -> list[Row]:
    """A table's rows with Dataverse's columns, whichever it has."""
    if any("image" in row for row in read_table(files, name, ())[:1]):
        groups = files.find(_GROUPS)
        grouped = {row["image"]: row for row in read_table(files, groups, ("image",))} if groups else {}
        rows = read_table(files, name, ("image", *_CLASSES))
        return [_as_dataverse(row, grouped.get(row["image"], {})) for row in rows]
    return read_table(files, name, required)


def _as_dataverse(row: Row, group: Row) -> Row:
    return {
        "lesion_id": group.get("lesion_id", ""),
        "image_id": row["image"],
        "dx": one_hot(row, _CLASSES),
        "dx_type": group.get("diagnosis_confirm_type", ""),
    }


def _image(files: SourceFiles, row: Row, split: Split | None) -> SourceImage:
    image_id = row["image_id"]
    name = files.image(image_id)
    mask = files.image(f"{image_id}_segmentation.png")
    return SourceImage(
        image_id=image_id,
        lesion_id=known(row.get("lesion_id")) or image_id,
        label=row["dx"],
        path=name or f"{image_id}.jpg",
        content=files.content(name),
        age=number(row.get("age")),
        sex=sex(row.get("sex")),
        site=known(row.get("localization")),
        dx_type=confirmed_by(row.get("dx_type")),
        mask=files.content(mask) if mask else None,
        split=split,
        license=LICENSE,
        attribution=ATTRIBUTION,
    )
