"""A folder of DICOM files, as a hospital's archive gives them, with or without a table of labels."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.names import NamedFiles
from dermtune.sources.rows import Row, known, read_rows, sex
from dermtune_bundle.decode import quiet
from dermtune_bundle.dicom import SUFFIXES, is_deflated, is_dicom

if TYPE_CHECKING:
    from pydicom import Dataset

_TAGS = ["SOPInstanceUID", "PatientID", "PatientAge", "PatientSex", "AnatomicRegionSequence"]
_AGE = re.compile(r"(\d{3})([DWMY])")  # PS3.5, 6.2: AS
_YEAR = {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}
_UID = ("sopinstanceuid", "sop_instance_uid")
_FILE = ("file", "filename", "file_name", "path")
_LABEL = ("label", "diagnosis")


def dicom_folder(root: Root) -> list[SourceImage]:
    """List the DICOM files: the rows of the table of labels, then the files that it lacks, without labels.

    DICOM files are those with the suffix .dcm or .dicom, or with none and the mark that the standard asks
    for; they may lie in .zip files. The table is the one *.csv or *.tsv. Its column `SOPInstanceUID` or
    `file` says which file, `label` or `diagnosis` what it shows, and `lesion_id` and `patient_id`, where
    there are such, of which lesion and whom, before what the file says; case does not count in the columns'
    names. Nothing that a DICOM file holds is taken for a label: what it says of diagnoses is free text, and
    of a visit, not of a lesion.

    Names of files often hold names of patients, so neither ids nor paths here do. An image's id is `dcm-`
    and the first 16 hex digits of the SHA-256 of its SOP Instance UID (of a damaged file, of its bytes). To
    find the file, look for the UID of which `printf %s UID | sha256sum` begins so.

    Raises:
        SourceError: there is nothing, there are several tables, or the table lacks a column.
    """
    files = SourceFiles(root)
    found = {name: image for name in files.names if (image := _image(files, name))}
    table = _table(files)
    if not found and table is None:
        raise SourceError(f"{root}: no DICOM files here; set ingest.path to their folder")
    rows = [] if table is None else _rows(files, table)
    named, by_id = NamedFiles(files, found), {image.image_id: name for name, image in found.items()}
    listed, used = [], set()
    for row in rows:
        name = by_id.get(_id(row["uid"])) if row["uid"] else named.find(row["file"])
        used.add(name)
        listed.append(_labelled(found[name] if name else _missing(row, named), row))
    return listed + [image for name, image in found.items() if name not in used]


def _image(files: SourceFiles, name: str) -> SourceImage | None:
    """Without a label; None: no DICOM file."""
    suffix = PurePosixPath(name).suffix.lower()
    # A UID as a file's name ends in a number.
    if suffix not in SUFFIXES and suffix.lstrip(".").strip("0123456789"):
        return None
    try:
        data = files.content(name)()
    except OSError:  # ingest says why
        data = name.encode()
    if suffix not in SUFFIXES and (not is_dicom(data) or PurePosixPath(name).name == "DICOMDIR"):
        return None
    try:
        with quiet:  # its warnings quote what a file holds
            return _described(data, files.content(name))
    except Exception:  # noqa: BLE001 - on damaged files, pydicom raises nearly anything
        return _bare(data, files.content(name))


def _described(data: bytes, content: Callable[[], bytes]) -> SourceImage:
    from pydicom import dcmread  # noqa: PLC0415 - heavy, and of no use to the other sources

    if is_deflated(data):
        return _bare(data, content)
    header = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_TAGS)
    return replace(
        _bare(known(header.get("SOPInstanceUID")) or data, content),
        patient_id=known(header.get("PatientID")),
        age=_age(header),
        sex=sex(header.get("PatientSex")),
        site=_site(header),
    )


def _age(header: "Dataset") -> float | None:
    found = _AGE.fullmatch(str(header.get("PatientAge")))
    return round(int(found[1]) / _YEAR[found[2]], 2) if found else None


def _site(header: "Dataset") -> str | None:
    regions = header.get("AnatomicRegionSequence")
    return known(regions[0].get("CodeMeaning")) if regions else None


def _bare(of: str | bytes, content: Callable[[], bytes]) -> SourceImage:
    image_id = _id(of)
    return SourceImage(image_id, image_id, "", f"{image_id}.dcm", content)


def _id(of: str | bytes) -> str:
    return "dcm-" + hashlib.sha256(of if isinstance(of, bytes) else of.encode()).hexdigest()[:16]


def _table(files: SourceFiles) -> str | None:
    found = [name for name in files.names if name.lower().endswith((".csv", ".tsv"))]
    if len(found) > 1:
        raise SourceError(
            f"{files.root}: {len(found)} tables ({', '.join(found[:5])}); keep the one of labels"
        )
    return found[0] if found else None


def _rows(files: SourceFiles, table: str) -> list[Row]:
    """Rows of `uid`, `file`, `label`, `lesion_id` and `patient_id`; what is not given is empty."""
    rows = read_rows(files.read(table), name=str(files.root / table))
    there = {column.casefold(): column for column in (rows[0] if rows else ())}

    def column(names: Iterable[str]) -> str | None:
        return next((there[name] for name in names if name in there), None)

    columns = {"uid": column(_UID), "file": column(_FILE), "label": column(_LABEL)}
    if columns["label"] is None or (columns["uid"] is None and columns["file"] is None):
        raise SourceError(
            f"{files.root / table}: needs a column label or diagnosis, and one SOPInstanceUID or file; its"
            f" columns are {', '.join(there.values())}"
        )
    columns |= {name: column([name]) for name in ("lesion_id", "patient_id")}
    return [{name: row[found] if found else "" for name, found in columns.items()} for row in rows]


def _missing(row: Row, named: NamedFiles) -> SourceImage:
    return _bare(row["uid"] or row["file"], named.content("" if row["uid"] else row["file"]))


def _labelled(image: SourceImage, row: Row) -> SourceImage:
    return replace(
        image,
        label=known(row["label"]) or "",
        lesion_id=known(row["lesion_id"]) or image.lesion_id,
        patient_id=known(row["patient_id"]) or image.patient_id,
    )
