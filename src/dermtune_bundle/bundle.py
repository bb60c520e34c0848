"""A bundle: model.onnx, bundle.json, MODEL_CARD.md and SHA256SUMS, in a folder or a .zip, checked before use.

Its version is the SHA-256 of SHA256SUMS, which names every other file's: a changed byte anywhere in the
bundle is another version.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from dermtune_bundle.cases import EMBEDDINGS, Cases, SimilarCase
from dermtune_bundle.container import (
    CHECKSUMS,
    SIGNATURE,
    checksums,
    read_checked,
    require_outside,
    write_files,
)
from dermtune_bundle.decode import decode
from dermtune_bundle.errors import BundleError, DermtuneError, ImageError
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import MALIGNANT, Manifest
from dermtune_bundle.quality import Quality, measure_quality
from dermtune_bundle.signature import check_signature, claimed_key, sign

MODEL: Final = "model.onnx"
MANIFEST: Final = "bundle.json"
CARD: Final = "MODEL_CARD.md"
CARD_PAGE: Final = "MODEL_CARD.html"
TOLERANCE: Final = 1e-4
"""How much a golden case's probabilities may differ between machines."""


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
    distance: float
    """How unlike the images that the model knows: 0 like one of them, at most 2."""
    activation: NDArray[np.float32]
    """(h, w) how much each place speaks for the class predicted; for `overlay`."""
    similar: tuple[SimilarCase, ...]
    """The training cases most like the image, where the bundle carries them."""
    quality: Quality
    """How sharp, bright and large the image is."""
    embedding: NDArray[np.float32]
    """(F,) what the classifier sees."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every byte of which matched SHA256SUMS."""

    manifest: Manifest
    """What bundle.json says."""
    graph: Graph
    version: str
    """SHA-256 of SHA256SUMS, 64 hexadecimal digits."""
    signed_by: str | None
    """Id of the key that signed it; None: `open` was given no key, so that this was not checked."""
    claimed_key: str | None
    """Id of the key that its signature names, checked or not; None: it bears no signature."""
    golden: Mapping[str, bytes]
    """Image files of the golden cases, by name."""
    cases: Cases | None
    """Training cases to show beside an image; None: it carries none."""

    @classmethod
    def open(cls, path: Path | str, *, key: Path | None = None, threads: int = 0) -> Self:
        """Check every file of a bundle, then load it.

        Args:
            path: the bundle's folder, or its .zip.
            key: the file of the public key that must have signed it; None: any bundle will do.
            threads: how many CPU threads one image may use; 0 for as many as there are, at most 8.

        Raises:
            BundleError: a file is missing, added, a link or changed, bundle.json or the graph is not as this
                version of dermtune expects, or they disagree; the message names the file.
        """
        path = Path(path)
        files = read_checked(path)
        claimed = claimed_key(files, source=path)
        signed_by = check_signature(files, key, source=path) if key else None
        if absent := sorted({MODEL, MANIFEST, CARD} - files.keys()):
            raise BundleError(f"{path / absent[0]}: missing; export the bundle again")
        manifest = Manifest.parse(files[MANIFEST], source=str(path / MANIFEST))
        graph = Graph(files[MODEL], name=str(path / MODEL), threads=threads)
        if graph.num_classes != len(manifest.classes):
            raise BundleError(
                f"{path / MODEL}: gives {graph.num_classes} probabilities, but {MANIFEST} names "
                f"{len(manifest.classes)} classes; export it again"
            )
        golden = {case.file: files.get(case.file, b"") for case in manifest.golden}
        version = hashlib.sha256(files[CHECKSUMS]).hexdigest()
        names = [known.name for known in manifest.classes]
        cases = Cases.from_files(files, names, source=str(path))
        if cases and cases.embeddings.shape[1] != graph.num_features:
            raise BundleError(f"{path / EMBEDDINGS}: of another graph than {MODEL}; export it again")
        return cls(manifest, graph, version, signed_by, claimed, golden, cases)

    def check_golden(self) -> float:
        """Run the golden cases: does this machine give the probabilities that the bundle was made with?

        Returns:
            The largest difference of a probability; 0 for a bundle without such cases.

        Raises:
            BundleError: it is more than `TOLERANCE`, or an image is missing; names it.
        """
        largest = 0.0
        for case in self.manifest.golden:
            try:
                image = decode(self.golden[case.file], name=case.file)
            except ImageError as error:
                raise BundleError(f"golden case {error}; export the bundle again") from error
            difference = float(np.abs(self.graph.run(image).probabilities - case.probabilities).max())
            if not difference <= TOLERANCE:
                raise BundleError(
                    f"{case.file}: this machine's probabilities differ by {difference:.1g} from those that "
                    f"the bundle was made with (at most {TOLERANCE:.0e} is allowed); do not use it here, and "
                    "tell who made it which onnxruntime and processor you have"
                )
            largest = max(largest, difference)
        return largest

    def predict(self, image: NDArray[np.uint8], *, pictures: int = 1) -> Prediction:
        """Classify one image.

        Args:
            image: uint8 (H, W, 3), RGB, any H and W, as `read_image` gives it.
            pictures: how many its file holds; where there are others, it abstains.

        Raises:
            BundleError: the graph fails on the image.
        """
        output, quality = self.graph.run(image), measure_quality(image)
        values = output.probabilities
        classes = self.manifest.classes
        probabilities = {known.name: value for known, value in zip(classes, values.tolist(), strict=True)}
        malignant = min(1.0, sum(probabilities[known.name] for known in classes if known.malignant))
        scores = probabilities | {MALIGNANT: malignant}
        members = self.manifest.in_set(values[np.newaxis])[0]
        named = int(self.manifest.named(values[np.newaxis])[0])
        return Prediction(
            probabilities=probabilities,
            malignant_probability=malignant,
            predicted=classes[named].name,
            decisions={
                point.name: scores[point.target] >= point.threshold
                for point in self.manifest.operating_points
            },
            prediction_set=tuple(
                classes[column].name for column in np.argsort(-values, kind="stable") if members[column]
            ),
            abstain=(
                *([f"the first of {pictures} in its file, the others not looked at"] if pictures > 1 else []),
                *self.manifest.limits.reasons(float(output.distance), quality),
            ),
            distance=float(output.distance),
            activation=output.activation_map[named],
            similar=self.cases.nearest(output.embedding) if self.cases else (),
            quality=quality,
            embedding=output.embedding,
        )


def write_bundle(
    folder: Path,
    *,
    model: bytes,
    manifest: Manifest,
    card: str,
    card_page: str = "",
    further: Mapping[str, bytes] | None = None,
) -> None:
    """Write a bundle's files, as `container.write_files` does.

    Args:
        folder: where to.
        model: the graph.
        manifest: what bundle.json says.
        card: the model card, in Markdown …
        card_page: … and as a page.
        further: the images of the manifest's golden cases, and the training cases, by file name.
    """
    files = {MODEL: model, MANIFEST: manifest.to_json().encode(), CARD: card.encode(), **(further or {})}
    files |= {CARD_PAGE: card_page.encode()} if card_page else {}
    write_files(folder, files | {CHECKSUMS: checksums(files).encode()})


def pack_bundle(path: Path, out: Path, *, key: Path | None = None) -> None:
    """Write a checked copy of a bundle, as a folder or as a .zip, signed or not.

    Args:
        path: the bundle, a folder or a .zip.
        out: where to; a .zip, if its name ends so.
        key: the file of a private key; without it, a signature that is there stays.

    Raises:
        BundleError: the bundle is damaged.
        DermtuneError: `out` exists, or the key is none.
    """
    files = read_checked(path)
    if out.exists():
        raise DermtuneError(f"{out}: exists; write to a new name")
    require_outside(path, out)
    if key is not None:
        files[SIGNATURE] = sign(files[CHECKSUMS], key)
    try:
        write_files(out, files)
    except OSError as error:
        raise DermtuneError(f"{out}: cannot be written: {error.strerror}") from error
