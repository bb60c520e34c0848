"""Many images through a bundle: find them, read them, and write what the bundle says of each as a record."""

import base64
import csv
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dermtune_bundle.bundle import Bundle, Prediction
from dermtune_bundle.cases import SimilarCase
from dermtune_bundle.decode import MAX_BYTES, SUFFIXES, decode
from dermtune_bundle.dicom_answer import dicom_answer, is_dicom_file
from dermtune_bundle.errors import DermtuneError, ImageError
from dermtune_bundle.files import atomic_path
from dermtune_bundle.manifest import flatten
from dermtune_bundle.pictures import overlay


@dataclass(frozen=True)
class FoundFiles:
    """What some files, folders and lists hold."""

    images: list[Path]
    """Files named, whatever their suffix, and the image files of folders and lists named, in order."""
    skipped: list[Path]
    """What else the folders hold: files without an image's suffix."""
    refused: list[ImageError]
    """Folders that cannot be searched, links and devices that are named like images, bad rows of lists."""


def find_images(paths: Iterable[Path]) -> FoundFiles:
    """List the images of files, folders and lists.

    Folders are searched through and through, links not followed. A list is a .csv file with a column `path`,
    relative to the list's own folder, out of which no row may lead.

    Raises:
        ImageError: a list cannot be read.
    """
    found = FoundFiles([], [], [])

    def note(error: OSError) -> None:
        found.refused.append(ImageError(f"{error.filename}: cannot be searched: {error.strerror}"))

    for path in paths:
        if not path.is_dir():
            for one in _listed(path) if path.suffix.lower() == ".csv" else [path]:
                found.refused.append(one) if isinstance(one, ImageError) else found.images.append(one)
            continue
        for file in sorted(
            Path(folder, name) for folder, _, names in os.walk(path, onerror=note) for name in names
        ):
            if file.suffix.lower() not in SUFFIXES:
                found.skipped.append(file)
            elif stat.S_ISREG(file.lstat().st_mode):
                found.images.append(file)
            else:
                found.refused.append(ImageError(f"{file}: a link or a device, which is not followed"))
    return found


def _listed(path: Path) -> Iterator[Path | ImageError]:
    folder = path.parent.resolve()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or ()):
                raise ImageError(f"{path}: has no column named path")
            for row in rows:
                named = row["path"] or ""
                if named and (folder / named).resolve().is_relative_to(folder):
                    yield path.parent / named
                else:
                    yield ImageError(
                        f"{path}: line {rows.line_num}: {named!r} is no file below {path.parent}"
                    )
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise ImageError(f"{path}: not a CSV file in UTF-8: {error}") from error


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Read and decode an image file.

    Returns:
        uint8 (H, W, 3), RGB, upright.

    Raises:
        ImageError: the file is missing, no regular file, or cannot be decoded; names it and the reason.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: not a regular file")
        if path.exists() and path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    return decode(data, name=str(path))


def predict_files(
    bundle: Bundle, paths: Iterable[Path], *, overlays: Path | None = None, dicoms: Path | None = None
) -> Iterator[tuple[Path, Prediction | ImageError]]:
    """Classify image files one by one, in constant memory; a file that fails yields its error.

    Args:
        bundle: what answers.
        paths: the files.
        overlays: a folder for an overlay of each image, under the name of `picture_path`; None: none is made.
        dicoms: a folder for the answer of each DICOM file, as one; None: none is made.
    """
    for path in paths:
        try:
            image = read_image(path)
            prediction = bundle.predict(image)
            if dicoms is not None and is_dicom_file(path):
                answer = dicom_answer(path, image, bundle, prediction)
                with atomic_path(picture_path(dicoms, path, ".dcm")) as temporary:
                    temporary.write_bytes(answer)
        except ImageError as error:
            yield path, error
            continue
        if overlays is not None:
            with atomic_path(picture_path(overlays, path, ".png")) as temporary:
                Image.fromarray(overlay(image, prediction.activation)).save(temporary, "PNG")
        yield path, prediction


def picture_path(folder: Path, path: Path, suffix: str) -> Path:
    """Where the picture of an image goes: no two images share a name."""
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return folder / f"{path.stem}-{key}{suffix}"


def record(name: str, bundle: Bundle, prediction: Prediction) -> dict[str, Any]:
    """One image's answer, with what is needed to trace it: ready for JSON.

    Args:
        name: what the image is called, such as its path.
        bundle: what answered.
        prediction: what it said.
    """
    return {
        "path": name,
        "predicted": prediction.predicted,
        "malignant_probability": prediction.malignant_probability,
        "probabilities": prediction.probabilities,
        "decisions": prediction.decisions,
        "prediction_set": list(prediction.prediction_set),
        "abstain": list(prediction.abstain),
        "distance": prediction.distance,
        "similar": [_similar(case) for case in prediction.similar],
        "bundle": {"name": bundle.manifest.name, "version": bundle.version},
        "notice": bundle.manifest.notice,
    }


def _similar(case: SimilarCase) -> dict[str, Any]:
    thumbnail = case.thumbnail and base64.b64encode(case.thumbnail).decode()
    known = {"image_id": case.image_id, "thumbnail": thumbnail}
    told = {key: value for key, value in known.items() if value is not None}
    return {"label": case.label, "similarity": case.similarity, **told}


def write_jsonl(records: Iterable[dict[str, Any]], file: IO[str]) -> None:
    """One JSON object a line, each written as soon as it is known."""
    for row in records:
        file.write(json.dumps(row) + "\n")  # in ASCII: a file's name may hold bytes that are no text
        file.flush()


def write_csv(records: Iterable[dict[str, Any]], file: IO[str]) -> None:
    """A table with a header; nested keys are joined by a dot, as in `probabilities.mel`."""
    writer = None
    for row in records:
        flat = _flat(row)
        if writer is None:
            writer = csv.DictWriter(file, list(flat), lineterminator="\n")
            writer.writeheader()
        writer.writerow(flat)


def write_parquet(records: Iterable[dict[str, Any]], path: Path) -> None:
    """The same table as a Parquet file, a row group a thousand rows, in constant memory.

    Raises:
        DermtuneError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DermtuneError("Parquet needs pyarrow: pip install 'dermtune[parquet]'") from None
    writer = None
    try:
        for rows in _batched(records, 1000):
            table = pa.Table.from_pylist([_flat(row) for row in rows], schema=writer and writer.schema)
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is None:
            parquet.write_table(pa.table({"path": pa.array([], pa.string())}), path)
    finally:
        if writer is not None:
            writer.close()


def _batched(records: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    waiting = iter(records)
    while rows := list(islice(waiting, size)):
        yield rows


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """As one row of a table; of similar cases, their labels."""
    labels = [case["label"] for case in row["similar"]]
    return {
        key: "; ".join(value) if isinstance(value, list) else value
        for key, value in flatten(row | {"similar": labels})
    }
