"""A bundle: a folder with model.onnx, bundle.json, MODEL_CARD.md and SHA256SUMS, checked before it is used.

Its version is the SHA-256 of SHA256SUMS, which names every other file's: a changed byte anywhere in the
bundle is another version.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from dermtune_bundle.errors import BundleError
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import MALIGNANT, Manifest
from dermtune_bundle.quality import measure_quality

MODEL: Final = "model.onnx"
MANIFEST: Final = "bundle.json"
CARD: Final = "MODEL_CARD.md"
CARD_PAGE: Final = "MODEL_CARD.html"
CHECKSUMS: Final = "SHA256SUMS"
_CHECKSUM_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)")
_HOW_TO_MEND = "the bundle is damaged or was changed: fetch it again"


@dataclass(frozen=True)
class Prediction:
    """What a bundle says of one image."""

    probabilities: dict[str, float]
    """By class name, calibrated; they sum to one."""
    malignant_probability: float
    """Sum over the malignant classes."""
    predicted: str
    """Name of the class with the largest decision weight times probability (see `Diagnosis`)."""
    decisions: dict[str, bool]
    """By operating point: does the probability of its target reach its threshold?"""
    prediction_set: tuple[str, ...]
    """Names of the classes that cannot be ruled out, the most probable first."""
    abstain: tuple[str, ...]
    """Why the answer is not to be relied on, in words; empty: nothing speaks against it."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every byte of which matched SHA256SUMS."""

    manifest: Manifest
    """What bundle.json says."""
    graph: Graph
    version: str
    """SHA-256 of SHA256SUMS, 64 hexadecimal digits."""

    @classmethod
    def open(cls, path: Path | str, *, threads: int = 0) -> Self:
        """Check every file of a bundle, then load it.

        Args:
            path: the bundle's folder.
            threads: how many CPU threads one image may use; 0 for as many as there are cores.

        Raises:
            BundleError: a file is missing, added, a link or changed, bundle.json or the graph is not as this
                version of dermtune expects, or they disagree; the message names the file.
        """
        folder = Path(path)
        files = read_checked(folder)
        manifest = Manifest.parse(files[MANIFEST], source=str(folder / MANIFEST))
        graph = Graph(files[MODEL], name=str(folder / MODEL), threads=threads)
        if graph.num_classes != len(manifest.classes):
            raise BundleError(
                f"{folder / MODEL}: gives {graph.num_classes} probabilities, but {MANIFEST} names "
                f"{len(manifest.classes)} classes; export it again"
            )
        return cls(manifest, graph, hashlib.sha256(files[CHECKSUMS]).hexdigest())

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Classify one image.

        Args:
            image: uint8 (H, W, 3), RGB, any H and W, as `read_image` gives it.
        """
        output = self.graph.run(image)
        values = output.probabilities
        classes = self.manifest.classes
        probabilities = {known.name: value for known, value in zip(classes, values.tolist(), strict=True)}
        malignant = min(1.0, sum(probabilities[known.name] for known in classes if known.malignant))
        scores = probabilities | {MALIGNANT: malignant}
        members = self.manifest.in_set(values[np.newaxis])[0]
        return Prediction(
            probabilities=probabilities,
            malignant_probability=malignant,
            predicted=classes[int(self.manifest.named(values[np.newaxis])[0])].name,
            decisions={
                point.name: scores[point.target] >= point.threshold
                for point in self.manifest.operating_points
            },
            prediction_set=tuple(
                classes[column].name for column in np.argsort(-values, kind="stable") if members[column]
            ),
            abstain=self.manifest.limits.reasons(float(output.distance), measure_quality(image)),
        )


def write_bundle(folder: Path, *, model: bytes, manifest: Manifest, card: str, card_page: str = "") -> None:
    """Write a bundle's files, SHA256SUMS last, so that a folder without it is no bundle yet."""
    files = {MODEL: model, MANIFEST: manifest.to_json().encode(), CARD: card.encode()}
    files |= {CARD_PAGE: card_page.encode()} if card_page else {}
    for name, data in (files | {CHECKSUMS: checksums(files).encode()}).items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(data)


def checksums(files: Mapping[str, bytes]) -> str:
    """The text of SHA256SUMS, as `sha256sum --check` reads it."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))


def read_checked(folder: Path) -> dict[str, bytes]:
    """Read a bundle's files, and hold each against SHA256SUMS.

    Raises:
        BundleError: a file is missing, added, no regular file, or has other bytes; the message names it.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; a bundle is the folder that `dermtune export` wrote")
    present = {entry.name for entry in folder.iterdir()}
    sums = _read(folder, CHECKSUMS)
    digests = _parse_checksums(sums, folder / CHECKSUMS)
    if extra := sorted(present - digests.keys() - {CHECKSUMS}):
        raise BundleError(f"{folder / extra[0]}: not listed in {CHECKSUMS}; {_HOW_TO_MEND}")
    files = {name: _read(folder, name) for name in sorted(digests)}
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != digests[name]:
            raise BundleError(f"{folder / name}: its bytes are not those of {CHECKSUMS}; {_HOW_TO_MEND}")
    return files | {CHECKSUMS: sums}


def _parse_checksums(data: bytes, source: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    text = data.decode("ascii", errors="replace")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        match = _CHECKSUM_LINE.fullmatch(line)
        if match is None or match["name"] in digests or match["name"] == CHECKSUMS:
            raise BundleError(f"{source}: line {number} is not '<sha256>  <file name>'; {_HOW_TO_MEND}")
        digests[match["name"]] = match["digest"]
    if absent := sorted({MODEL, MANIFEST, CARD} - digests.keys()):
        raise BundleError(f"{source}: does not list {', '.join(absent)}; {_HOW_TO_MEND}")
    return digests


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        what = "is a link or no regular file" if path.is_symlink() or path.exists() else "missing"
        raise BundleError(f"{path}: {what}; {_HOW_TO_MEND}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
