"""PH2 (Mendonça et al. 2013, the ADDI project): its spreadsheet and its folder an image."""

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import openpyxl

from dermtune.errors import SourceError
from dermtune.sources import SourceImage

_TABLE = "PH2_dataset.xlsx"
_FOLDER = "PH2 Dataset images"
_LABELS = {"Common Nevus": "nv", "Atypical Nevus": "atypical", "Melanoma": "mel"}


def ph2(root: Path) -> list[SourceImage]:
    """List PH2's images: the rows of its spreadsheet, then any image that it lacks.

    PH2 names neither lesions nor patients, so each image counts as a lesion of its own.

    Raises:
        SourceError: the spreadsheet is missing or has another layout, or a row has not exactly one diagnosis.
    """
    table = root / _TABLE
    try:
        with closing(openpyxl.load_workbook(table, read_only=True, data_only=True)) as book:
            rows = iter(list(book.worksheets[0].iter_rows(values_only=True)))
    except Exception as error:  # damaged spreadsheets make openpyxl raise nearly anything
        raise SourceError(f"{table}: not a readable spreadsheet; set ingest.path to PH2's folder") from error
    header = next((row for row in rows if row and row[0] == "Image Name"), None)
    if header is None or any(name not in header for name in _LABELS):
        raise SourceError(f"{table}: no header row 'Image Name', {', '.join(map(repr, _LABELS))}")
    listed = [_image(root, dict(zip(header, row, strict=False))) for row in rows if row and row[0]]
    ids = {image.image_id for image in listed}
    folders = sorted((root / _FOLDER).glob("*/*_Dermoscopic_Image"))
    unlisted = [folder.parent.name for folder in folders if folder.parent.name not in ids]
    return listed + [_source_image(root, image_id, label="") for image_id in unlisted]


def _image(root: Path, row: dict[Any, Any]) -> SourceImage:
    image_id = str(row["Image Name"]).strip()
    marked = [label for column, label in _LABELS.items() if row.get(column)]
    if len(marked) != 1:
        raise SourceError(
            f"{root / _TABLE}: {image_id} has {len(marked)} diagnoses; each row has exactly one"
        )
    dx_type = "histo" if row.get("Histological Diagnosis") else "consensus"
    return _source_image(root, image_id, label=marked[0], dx_type=dx_type)


def _source_image(root: Path, image_id: str, *, label: str, dx_type: str | None = None) -> SourceImage:
    stem = Path(image_id).name
    path = root / _FOLDER / stem / f"{stem}_Dermoscopic_Image" / f"{stem}.bmp"
    return SourceImage(
        image_id=image_id,
        lesion_id=image_id,
        label=label,
        path=path.relative_to(root).as_posix(),
        content=partial(Path.read_bytes, path),
        dx_type=dx_type,
    )
