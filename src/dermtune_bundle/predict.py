"""Many images through a bundle: find them, read them, and write what the bundle says of each as a record."""

import csv
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dermtune_bundle.bundle import Bundle, Prediction
from dermtune_bundle.decode import MAX_BYTES, SUFFIXES, decode
from dermtune_bundle.errors import ImageError
from dermtune_bundle.manifest import flatten


@dataclass(frozen=True)
class FoundFiles:
    """What some files and folders hold."""

    images: list[Path]
    """Files named, whatever their suffix, and the image files of folders named, in order."""
    skipped: list[Path]
    """What else the folders hold: files without an image's suffix, links, devices."""
    unreadable: list[Path]
    """Folders that could not be searched."""


def find_images(paths: Iterable[Path]) -> FoundFiles:
    """List the images of files and folders; folders are searched through and through, links not followed."""
    found = FoundFiles([], [], [])

    def note(error: OSError) -> None:
        found.unreadable.append(Path(error.filename))

    for path in paths:
        if not path.is_dir():
            found.images.append(path)
            continue
        for file in sorted(
            Path(folder, name) for folder, _, names in os.walk(path, onerror=note) for name in names
        ):
            usable = file.suffix.lower() in SUFFIXES and stat.S_ISREG(file.lstat().st_mode)
            (found.images if usable else found.skipped).append(file)
    return found


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


def predict_files(bundle: Bundle, paths: Iterable[Path]) -> Iterator[tuple[Path, Prediction | ImageError]]:
    """Classify image files one by one, in constant memory; a file that fails yields its error."""
    for path in paths:
        try:
            yield path, bundle.predict(read_image(path))
        except ImageError as error:
            yield path, error


def record(bundle: Bundle, path: Path, prediction: Prediction) -> dict[str, Any]:
    """One image's answer, with what is needed to trace it: ready for JSON."""
    return {
        "path": str(path),
        "predicted": prediction.predicted,
        "malignant_probability": prediction.malignant_probability,
        "probabilities": prediction.probabilities,
        "decisions": prediction.decisions,
        "prediction_set": list(prediction.prediction_set),
        "abstain": list(prediction.abstain),
        "bundle": {"name": bundle.manifest.name, "version": bundle.version},
        "notice": bundle.manifest.notice,
    }


def write_jsonl(records: Iterable[dict[str, Any]], file: IO[str]) -> None:
    """One JSON object a line, each written as soon as it is known."""
    for row in records:
        file.write(json.dumps(row) + "\n")  # in ASCII: a file's name may hold bytes that are no text
        file.flush()


def write_csv(records: Iterable[dict[str, Any]], file: IO[str]) -> None:
    """A table with a header; nested keys are joined by a dot, as in `probabilities.mel`."""
    writer = None
    for row in records:
        flat = {key: "; ".join(value) if isinstance(value, list) else value for key, value in flatten(row)}
        if writer is None:
            writer = csv.DictWriter(file, list(flat), lineterminator="\n")
            writer.writeheader()
        writer.writerow(flat)
