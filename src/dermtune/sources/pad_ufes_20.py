"""PAD-UFES-20 (Pacheco et al. 2020, doi 10.1016/j.dib.2020.106221): metadata.csv and its parts of images."""

from pathlib import PurePosixPath

from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.rows import Row, known, number, read_rows, sex, skin_type

_REQUIRED = ("patient_id", "lesion_id", "diagnostic", "img_id")
_DX_TYPES = {"true": "histo", "false": "consensus"}
_LICENSE = "CC-BY-4.0"  # https://data.mendeley.com/datasets/zr7vgbcyr2/1
_ATTRIBUTION = "Pacheco et al. 2020, doi 10.1016/j.dib.2020.106221"


def pad_ufes_20(root: Root) -> list[SourceImage]:
    """List the images: the rows of metadata.csv, then any image that it lacks.

    They are clinical photographs taken with smartphones, not dermoscopic images: a model trained on one kind
    does not know the other. Its label SCC includes Bowen's disease. Diagnoses without a biopsy are the
    consensus of dermatologists.

    The parts may stay packed (imgs_part_1.zip), but the download around them may not: unpack it first.

    Raises:
        SourceError: the table is missing or lacks a column.
    """
    files = SourceFiles(root)
    table = files.require("metadata.csv")
    rows = read_rows(files.read(table), name=str(root / table), required=_REQUIRED)
    names = [files.image(row["img_id"]) for row in rows]
    listed = [_image(row, name, files) for row, name in zip(rows, names, strict=True)]
    unlisted = sorted(set(files.images()) - set(names))
    return listed + [_unlisted(name, files) for name in unlisted]


def _image(row: Row, name: str | None, files: SourceFiles) -> SourceImage:
    image_id = PurePosixPath(row["img_id"]).stem
    return SourceImage(
        image_id=image_id,
        # a number, which is not said to be unique over all patients
        lesion_id=f"{row['patient_id']}_{row['lesion_id']}" if known(row["lesion_id"]) else image_id,
        label=known(row["diagnostic"]) or "",
        path=name or row["img_id"],
        content=files.content(name),
        patient_id=known(row["patient_id"]),
        age=number(row.get("age")),
        sex=sex(row.get("gender")),
        site=(known(row.get("region")) or "").lower() or None,
        dx_type=_DX_TYPES.get(row.get("biopsed", "").lower()),
        skin_tone=skin_type(row.get("fitspatrick")),
        license=_LICENSE,
        attribution=_ATTRIBUTION,
    )


def _unlisted(name: str, files: SourceFiles) -> SourceImage:
    stem = PurePosixPath(name).stem
    return SourceImage(stem, stem, "", name, files.content(name), license=_LICENSE, attribution=_ATTRIBUTION)
