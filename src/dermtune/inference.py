"""Run the deployable graph over packed images: what calibrate chooses by and evaluate measures."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.appearance import Appearance, appearance, lesion_mask, unpack_mask
from dermtune.errors import DataError
from dermtune.progress import progress
from dermtune.shards import PackedImages, Place
from dermtune.shortcuts import VARIANTS, activation_inside
from dermtune_bundle.errors import BundleError
from dermtune_bundle.graph import Graph, GraphOutput
from dermtune_bundle.manifest import Contract
from dermtune_bundle.quality import Quality, measure_quality

R = TypeVar("R")
T = TypeVar("T")


@dataclass(frozen=True)
class Looked:
    """What the graph says of N images, and how good they are."""

    probabilities: NDArray[np.float64]
    """(N, K)"""
    logits: NDArray[np.float64]
    """(N, K)"""
    embeddings: NDArray[np.float32]
    """(N, F)"""
    distances: NDArray[np.float64]
    """(N,)"""
    activations: NDArray[np.float32]
    """(N, h, w) of the most probable class."""
    qualities: list[Quality]

    def frozen(self, features: int) -> NDArray[np.float32]:
        """What the frozen layers see, (N, features) of length one: the last part of the embeddings."""
        part = self.embeddings[:, -features:]
        unit: NDArray[np.float32] = part / np.linalg.norm(part, axis=1, keepdims=True)
        return unit


def read_model(folder: Path, *, threads: int = 1) -> tuple[Graph, Contract]:
    """Read what calibrate wrote: the deployable graph, and what its numbers mean.

    Args:
        folder: holds model.onnx and model.json.
        threads: of the graph; 0: one a core.

    Raises:
        DataError: one of them is missing or damaged, or they do not belong together.
    """
    try:
        graph = Graph.open(folder / "model.onnx", threads=threads)
        contract = Contract.parse((folder / "model.json").read_bytes(), source=str(folder / "model.json"))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; re-run calibrate") from error
    except BundleError as error:
        raise DataError(f"{error}; re-run calibrate") from error
    if graph.num_classes != len(contract.classes):
        raise DataError(f"{folder}: model.onnx and model.json disagree on the classes; re-run calibrate")
    return graph, contract


def look_at_images(
    graph: Graph, packed: PackedImages, places: Sequence[Place], *, description: str
) -> Looked:
    """Run the graph on images, decoded from their original bytes.

    Give a graph with one thread: an image a core, so that decoding runs in parallel too, and no sum depends
    on the number of cores.

    Args:
        graph: the deployable graph.
        packed: where the images lie.
        places: N of them.
        description: what the progress bar says.

    Raises:
        ImageError: an image can't be read; names it.
    """

    def look(place: Place) -> tuple[GraphOutput, Quality]:
        image = packed.decode(place)
        return graph.run(image), measure_quality(image)

    found = _map(look, places, description)
    outputs = [output for output, _ in found]
    return Looked(
        np.array([output.probabilities for output in outputs], np.float64),
        np.array([output.logits for output in outputs], np.float64),
        np.array([output.embedding for output in outputs], np.float32),
        np.array([output.distance for output in outputs], np.float64),
        np.array([output.activation_map[output.probabilities.argmax()] for output in outputs], np.float32),
        [quality for _, quality in found],
    )


def measure_appearance(
    packed: PackedImages,
    places: Sequence[Place],
    *,
    masks: Sequence[NDArray[np.uint8] | None],
    description: str,
) -> pd.DataFrame:
    """What N images show: `lesion_share` and `ita`, a row an image, missing where nothing can be said.

    Args:
        packed: where the images lie.
        places: N of them.
        masks: N, as of `appearance.pack_mask`, or None where the source has none.
        description: what the progress bar says.

    Raises:
        ImageError: an image can't be read; names it.
    """

    def look(row: tuple[Place, NDArray[np.uint8] | None]) -> Appearance:
        place, given = row
        image = packed.decode(place)
        return appearance(image, None if given is None else unpack_mask(given, *image.shape[:2]))

    return _appearance_table(_map(look, list(zip(places, masks, strict=True)), description))


def _appearance_table(shown: Sequence[Appearance]) -> pd.DataFrame:
    return pd.DataFrame([{"lesion_share": one.lesion_share, "ita": one.ita} for one in shown], dtype=float)


@dataclass(frozen=True)
class Probed:
    """What N images show, and what the graph says of them once a part of them is painted over."""

    appearance: pd.DataFrame
    """`lesion_share` and `ita`: a row an image, missing where nothing can be said."""
    probabilities: dict[str, NDArray[np.float64]]
    """(N, K) by variant, as of `shortcuts.VARIANTS`."""
    inside: NDArray[np.float64]
    """(N,) share of the most probable class's activation that lies in the lesion; NaN where there is none."""
    outlined: NDArray[np.bool_]
    """(N,) is the outline of the lesion the source's? Else a program estimates it."""


def probe_images(
    graph: Graph,
    packed: PackedImages,
    places: Sequence[Place],
    *,
    masks: Sequence[NDArray[np.uint8] | None],
    activations: NDArray[np.float32],
    description: str,
) -> Probed:
    """See what images show, and run the graph on each one's variants.

    Args:
        graph: the deployable graph, with one thread.
        packed: where the images lie.
        places: N of them.
        masks: N, as of `appearance.pack_mask`, or None where the source has none.
        activations: (N, h, w), as of `Looked`.
        description: what the progress bar says.

    Raises:
        ImageError: an image can't be read; names it.
    """

    def probe(
        row: tuple[Place, NDArray[np.uint8] | None, NDArray[np.float32]],
    ) -> tuple[Appearance, list[NDArray[np.float32]], float]:
        place, given, activation = row
        image = packed.decode(place)
        lesion = lesion_mask(image) if given is None else unpack_mask(given, *image.shape[:2])
        painted = [graph.run(change(image, lesion)).probabilities for change in VARIANTS.values()]
        return appearance(image, lesion), painted, activation_inside(activation, lesion)

    found = _map(probe, list(zip(places, masks, activations, strict=True)), description)
    shown, painted, inside = zip(*found, strict=True)
    values = np.array(painted, np.float64)
    return Probed(
        _appearance_table(shown),
        {name: values[:, index] for index, name in enumerate(VARIANTS)},
        np.array(inside, np.float64),
        np.array([mask is not None for mask in masks]),
    )


def _map(look: Callable[[R], T], places: Sequence[R], description: str) -> list[T]:
    """Look at each image, one a core."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(progress(pool.map(look, places), description, len(places)))
    finally:
        pool.shutdown(cancel_futures=True)  # after the first bad image, the rest need not be read
