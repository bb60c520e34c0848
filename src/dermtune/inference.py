"""Run the deployable graph over packed images: what calibrate chooses by and evaluate measures."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.appearance import appearance
from dermtune.progress import progress
from dermtune.shards import PackedImages, Place
from dermtune_bundle.graph import Graph, GraphOutput
from dermtune_bundle.quality import Quality, measure_quality


@dataclass(frozen=True)
class Looked:
    """What the graph says of N images, and how good they are."""

    probabilities: NDArray[np.float64]
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

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        found = list(progress(pool.map(look, places), description, len(places)))
    finally:
        pool.shutdown(cancel_futures=True)  # after the first bad image, the rest need not be read
    outputs = [output for output, _ in found]
    return Looked(
        np.array([output.probabilities for output in outputs], np.float64),
        np.array([output.embedding for output in outputs], np.float32),
        np.array([output.distance for output in outputs], np.float64),
        [quality for _, quality in found],
    )


def appearances(packed: PackedImages, places: Sequence[Place]) -> pd.DataFrame:
    """`lesion_share` and `ita` of images: a row an image, missing where nothing can be said.

    Raises:
        ImageError: an image can't be read; names it.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda place: appearance(packed.decode(place)), places))
    return pd.DataFrame(
        {"lesion_share": [one.lesion_share for one in found], "ita": [one.ita for one in found]}, dtype=float
    )
