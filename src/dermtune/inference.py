"""Run the deployable graph over packed images: what calibrate chooses by and evaluate measures."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.appearance import appearance
from dermtune.progress import progress
from dermtune.shards import PackedImages, Place
from dermtune.shortcuts import VARIANTS, activation_inside
from dermtune_bundle.graph import Graph, GraphOutput
from dermtune_bundle.quality import Quality, measure_quality

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
    qualities: list[Quality]


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
        [quality for _, quality in found],
    )


def appearances(packed: PackedImages, places: Sequence[Place]) -> pd.DataFrame:
    """`lesion_share` and `ita` of images: a row an image, missing where nothing can be said.

    Raises:
        ImageError: an image can't be read; names it.
    """
    found = _map(lambda place: appearance(packed.decode(place)), places, "skin and size")
    return pd.DataFrame(
        {"lesion_share": [one.lesion_share for one in found], "ita": [one.ita for one in found]}, dtype=float
    )


@dataclass(frozen=True)
class Probed:
    """What the graph says of N images once a part of them is painted over."""

    probabilities: dict[str, NDArray[np.float64]]
    """(N, K) by variant, as of `shortcuts.VARIANTS`."""
    inside: NDArray[np.float64]
    """(N,) share of the most probable class's activation that lies in the lesion; NaN where there is none."""
    covered: NDArray[np.float64]
    """(N,) share of the image that the lesion covers."""


def probe_images(graph: Graph, packed: PackedImages, places: Sequence[Place], *, description: str) -> Probed:
    """Run the graph on each image's variants, and see where it looks; arguments as of `look_at_images`."""

    def probe(place: Place) -> tuple[list[NDArray[np.float32]], tuple[float, float]]:
        image = packed.decode(place)
        plain = graph.run(image)
        activation = plain.activation_map[int(plain.probabilities.argmax())]
        painted = [graph.run(change(image)).probabilities for change in VARIANTS.values()]
        return painted, activation_inside(activation, image)

    found = _map(probe, places, description)
    painted = np.array([one for one, _ in found], np.float64)
    inside, covered = np.array([two for _, two in found], np.float64).T
    by_variant = {name: painted[:, index] for index, name in enumerate(VARIANTS)}
    return Probed(by_variant, inside, covered)


def _map(look: Callable[[Place], T], places: Sequence[Place], description: str) -> list[T]:
    """Look at each image, one a core."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(progress(pool.map(look, places), description, len(places)))
    finally:
        pool.shutdown(cancel_futures=True)  # after the first bad image, the rest need not be read
