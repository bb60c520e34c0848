"""PH2 (Mendonça et al. 2013, the ADDI project): its spreadsheet and its folder an image."""

import io
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

import openpyxl

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles

_TABLE = "PH2_dataset.xlsx"
_LABELS = {"Common Nevus": "nv", "Atypical Nevus": "atypical", "Melanoma": "mel"}


def ph2(root: Root) -> list[SourceImage]:
    """List PH2's images: the rows of its spreadsheet, then any image that it lacks.

    PH2 names neither lesions nor patients, so each image counts as a lesion of its own.

    Raises:
        SourceError: the spreadsheet is missing or has another layout, or a row has not exactly one diagnosis.
    """
    files = SourceFiles(root)
    table = root / _TABLE
    data = io.BytesIO(files.read(files.require(_TABLE)))
    try:
        with closing(openpyxl.load_workbook(data, read_only=True, data_only=True)) as book:
            rows = iter(list(book.worksheets[0].iter_rows(values_only=True)))
    except Exception as error:  # damaged spreadsheets make openpyxl raise nearly anything
        raise SourceError(f"{table}: not a readable spreadsheet; set ingest.path to PH2's folder") from error
    header = next((row for row in rows if row and row[0] == "Image Name"), None)
    if header is None or any(name not in header for name in _LABELS):
        raise SourceError(f"{table}: no header row 'Image Name', {', '.join(map(repr, _LABELS))}")
    folders = "*_Dermoscopic_Image/*"  # beside those of masks, whose files are called alike
    names = {PurePosixPath(one).stem: one for one in files.images() if PurePosixPath(one).match(folders)}
    listed = [_image(dict(zip(header, row, strict=False)), names, files) for row in rows if row and row[0]]
    ids = {image.image_id for image in listed}
    return listed + [_source_image(one, names, files, label="") for one in names if one not in ids]


def _image(row: dict[Any, Any], names: dict[str, str], files: SourceFiles) -> SourceImage:
    image_id = str(row["Image Name"]).strip()
    marked = [label for column, label in _LABELS.items() if row.get(column)]
    if len(marked) != 1:
        raise SourceError(
            f"{files.root / _TABLE}: {image_id} has {len(marked)} diagnoses; each row has exactly one"
        )
    dx_type = "histo" if row.get("Histological Diagnosis") else "consensus"
    return _source_image(image_id, names, files, label=marked[0], dx_type=dx_type)


def _source_image(
    image_id: str, names: dict[str, str], files: SourceFiles, *, label: str, dx_type: str | None = None
) -> SourceImage:
    return SourceImage(
        image_id=image_id,
        lesion_id=image_id,
        label=label,
        path=names.get(image_id, f"{image_id}.bmp"),
        content=files.content(names.get(image_id)),
        dx_type=dx_type,
    )
