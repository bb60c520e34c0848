"""Images of the ISIC Archive with its metadata.csv: what dermtune.isic_archive or isic-cli downloaded."""

import logging

from isic_metadata.metadata import MetadataRow
from pydantic import ValidationError

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.isic import confirmed_by, most_specific, read_table, unlisted
from dermtune.sources.rows import Row, known, number, sex, skin_type

_LOGGER = logging.getLogger(__name__)
_SHOWN = 5  # images named in one message
_DIAGNOSES = tuple(f"diagnosis_{level}" for level in range(1, 6))
_SITES = tuple(f"anatom_site_{level}" for level in range(1, 6))
_FORMER = "diagnosis"  # of downloads that are older than the tree; has other words, such as `melanoma`
# The columns that are taken, and so are checked; isic-metadata knows age_approx as age.
_CHECKED = (
    *_DIAGNOSES, *_SITES, "anatom_site_general", "diagnosis_confirm_type", "fitzpatrick_skin_type",
    "lesion_id", "patient_id", "sex",
)  # fmt: skip
# From a field that isic-metadata refuses to our columns, where they are not called the same.
_COLUMNS = {"diagnosis": (*_DIAGNOSES, _FORMER), "anatom_site": _SITES, "age": ("age_approx",)}
_DERMOSCOPIC = "dermoscopic"


def isic_archive(root: Root) -> list[SourceImage]:
    """List a download from the ISIC Archive: the rows of its metadata.csv, then any image that it lacks.

    The label is the most specific diagnosis. Where the image is not dermoscopic, its kind is said with it, as
    in `Nevus (clinical: close-up)`, which means no class by itself: ingest tells of it, and
    `ingest.label_map` takes it in. An image of no `image_type` counts as dermoscopic.

    What isic-metadata refuses is unknown: a diagnosis that is not in the Archive's tree leaves no label.

    Raises:
        SourceError: there is no metadata.csv, or one of its rows has no isic_id or one that another row has.
    """
    files = SourceFiles(root)
    table = files.require("metadata.csv", "*metadata*.csv")
    listed: dict[str, SourceImage] = {}
    refused = []
    for place, row in enumerate(read_table(files, table, ["isic_id"]), start=1):
        isic_id = row["isic_id"]
        if not isic_id or isic_id in listed:
            what = f"{isic_id} is there twice" if isic_id else "no isic_id"
            raise SourceError(f"{root / table}: row {place}: {what}; download it again")
        checked = _checked(row)
        if _diagnosis(row) and not _diagnosis(checked):
            refused.append(f"{_diagnosis(row)!r:.60} ({isic_id})")
        listed[isic_id] = _image(files, isic_id, checked)
    if refused:
        _LOGGER.warning(
            "%s: %d images have no label, for isic-metadata does not know their diagnosis: %s",
            root / table, len(refused), ", ".join(refused[:_SHOWN]),
        )  # fmt: skip
    here = set(files.images())
    return [*listed.values(), *unlisted(files, (image for image in listed.values() if image.path in here))]


def _checked(row: Row) -> Row:
    """The row without words for unknown and without what isic-metadata refuses."""
    row = {name: known(cell) or "" for name, cell in row.items()}
    taken = {name: row[name] for name in _CHECKED if name in row} | {"age": row.get("age_approx", "")}
    try:
        MetadataRow.model_validate(taken)
    except ValidationError as error:
        for refused in {str(one["loc"][0]) for one in error.errors() if one["loc"]}:
            row |= dict.fromkeys(_COLUMNS.get(refused, (refused,)), "")
    return row


def _image(files: SourceFiles, isic_id: str, row: Row) -> SourceImage:
    name = files.image(isic_id) or f"{isic_id}.jpg"
    kind = row.get("image_type") or _DERMOSCOPIC
    diagnosis = _diagnosis(row)
    return SourceImage(
        image_id=isic_id,
        lesion_id=row.get("lesion_id") or isic_id,
        label=f"{diagnosis} ({kind})" if diagnosis and kind != _DERMOSCOPIC else diagnosis,
        path=name,
        content=files.content(name),
        patient_id=row.get("patient_id") or None,
        age=number(row.get("age_approx")),
        sex=sex(row.get("sex")),
        # The first level of the newer tree is about as coarse as the older column
        site=row.get("anatom_site_general") or row.get("anatom_site_1") or None,
        dx_type=confirmed_by(row.get("diagnosis_confirm_type")),
        skin_tone=skin_type(row.get("fitzpatrick_skin_type")),
        license=row.get("copyright_license") or None,
        attribution=row.get("attribution") or None,
    )


def _diagnosis(row: Row) -> str:
    first = known(row.get("diagnosis_1")) or ""
    return most_specific(row, "diagnosis_", first) or known(row.get(_FORMER)) or ""
