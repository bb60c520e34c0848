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
from dermtune_bundle.decode import MAX_BYTES, SUFFIXES, count_pictures, decode
from dermtune_bundle.dicom import is_dicom
from dermtune_bundle.dicom_answer import dicom_answer
from dermtune_bundle.errors import BundleError, DermtuneError, ImageError
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
    """
    found = FoundFiles([], [], [])

    def note(error: OSError) -> None:
        found.refused.append(ImageError(f"{error.filename}: cannot be searched: {error.strerror}"))

    for path in paths:
        if not path.is_dir():
            for one in _listed(path) if path.suffix.lower() == ".csv" else [path]:
                found.refused.append(one) if isinstance(one, ImageError) else found.images.append(one)
            continue
        walk = os.walk(path, onerror=note)
        for file in sorted(Path(folder, name) for folder, folders, names in walk for name in folders + names):
            mode, is_named_so = file.lstat().st_mode, file.suffix.lower() in SUFFIXES
            if stat.S_ISLNK(mode) and file.is_dir():
                found.refused.append(ImageError(f"{file}: a link to a folder, which is not followed"))
            elif stat.S_ISDIR(mode):
                continue  # what it holds comes by itself
            elif stat.S_ISREG(mode) and (is_named_so or _is_dicom_without_suffix(file)):
                found.images.append(file)
            elif is_named_so:
                found.refused.append(ImageError(f"{file}: a link or a device, which is not followed"))
            else:
                found.skipped.append(file)
    return found


def _is_dicom_without_suffix(path: Path) -> bool:
    """Exports often name files IM0001; one that cannot be read is left to `read_image`, which says why."""
    if path.suffix:
        return False
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(132))
    except OSError:
        return True


def _listed(path: Path) -> Iterator[Path | ImageError]:
    folder = path.parent.resolve()
    if path.exists() and not path.is_file():
        yield ImageError(f"{path}: not a regular file")
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or ()):
                yield ImageError(f"{path}: has no column named path")
                return
            for row in rows:
                named = row["path"] or ""
                if named and _is_below(folder, named):
                    yield path.parent / named
                else:
                    yield ImageError(
                        f"{path}: line {rows.line_num}: {named!r} is no file below {path.parent}"
                    )
    except OSError as error:
        yield ImageError(f"{path}: {error.strerror}")
    except (ValueError, csv.Error) as error:
        yield ImageError(f"{path}: not a CSV file in UTF-8, at least from here on: {error}")


def _is_below(folder: Path, named: str) -> bool:
    try:
        return (folder / named).resolve().is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):  # a loop of links, or no name of a file
        return False


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Read and decode an image file.

    Returns:
        uint8 (H, W, 3), RGB, upright.

    Raises:
        ImageError: the file is missing, no regular file, of another kind than its name says, or cannot be
            decoded; names it and the reason.
    """
    path = Path(path)
    return decode(_read(path), name=str(path), suffix=path.suffix)


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: not a regular file")
        if path.exists() and path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path}: larger than {MAX_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def predict_files(
    bundle: Bundle, paths: Iterable[Path], *, overlays: Path | None = None, dicoms: Path | None = None
) -> Iterator[tuple[Path, Prediction | ImageError]]:
    """Classify image files one by one, in constant memory.

    A file that fails yields its error; one of which no DICOM answer can be made its answer, then the error.

    Args:
        bundle: what answers.
        paths: the files.
        overlays: a folder for an overlay of each image, under the name of `picture_path`; None: none is made.
        dicoms: a folder for the answer of each DICOM file, as one; None: none is made.
    """
    for path in paths:
        try:
            data = _read(path)
            image = decode(data, name=str(path), suffix=path.suffix)
            prediction = bundle.predict(image, pictures=count_pictures(data))
        except ImageError as error:
            yield path, error
            continue
        except BundleError as error:
            yield path, ImageError(f"{path}: {error}")
            continue
        if overlays is not None:
            with atomic_path(picture_path(overlays, path, ".png")) as temporary:
                Image.fromarray(overlay(image, prediction.activation)).save(temporary, "PNG")
        yield path, prediction
        if dicoms is not None and is_dicom(data):
            try:
                answer = dicom_answer(path, image, bundle, prediction)
            except ImageError as error:
                yield path, error
                continue
            with atomic_path(picture_path(dicoms, path, ".dcm")) as temporary:
                temporary.write_bytes(answer)


def picture_path(folder: Path, path: Path, suffix: str) -> Path:
    """Where the picture of an image goes: no two images share a name."""
    key = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return folder / f"{path.stem[:100]}-{key}{suffix}"


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
        "error": None,
        "bundle": {"name": bundle.manifest.name, "version": bundle.version},
        "notice": bundle.manifest.notice,
    }


def failure(name: str, bundle: Bundle, error: str) -> dict[str, Any]:
    """The record of an image that got no answer: as `record`, with nothing but the reason."""
    manifest = bundle.manifest
    return {
        "path": name,
        "predicted": None,
        "malignant_probability": None,
        "probabilities": {known.name: None for known in manifest.classes},
        "decisions": {point.name: None for point in manifest.operating_points},
        "prediction_set": [],
        "abstain": [],
        "distance": None,
        "similar": [],
        "error": error,
        "bundle": {"name": manifest.name, "version": bundle.version},
        "notice": manifest.notice,
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
        writer.writerow({key: _no_formula(value) for key, value in flat.items()})


def _no_formula(value: object) -> object:
    """A spreadsheet would run a text that begins so."""
    risky = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if risky else value


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
            flat = [_flat(row) for row in rows]
            schema = pa.schema([(key, _parquet_type(key, pa)) for key in flat[0]])
            writer = writer or parquet.ParquetWriter(path, schema)
            writer.write_table(pa.Table.from_pylist(flat, schema=schema))
        if writer is None:
            parquet.write_table(pa.table({"path": pa.array([], pa.string())}), path)
    finally:
        if writer is not None:
            writer.close()


def _parquet_type(key: str, pa: Any) -> Any:  # noqa: ANN401 (pyarrow ships no types)
    """Of a column, though the first rows may be failures that have nothing in it."""
    if key.startswith("probabilities.") or key in {"malignant_probability", "distance"}:
        return pa.float64()
    return pa.bool_() if key.startswith("decisions.") else pa.string()


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
