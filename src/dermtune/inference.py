"""Run the deployable graph over packed images: what finetune chooses thresholds by and evaluate measures."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from dermtune.progress import progress
from dermtune.shards import PackedImages, Place
from dermtune_bundle.graph import Graph


def predict_images(
    graph: Graph, packed: PackedImages, places: Sequence[Place], *, description: str
) -> NDArray[np.float64]:
    """Calibrated probabilities (N, K) of images, decoded from their original bytes.

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
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        found = pool.map(lambda place: graph.run(packed.decode(place)).probabilities, places)
        return np.array(list(progress(found, description, len(places))), dtype=np.float64)
    finally:
        pool.shutdown(cancel_futures=True)  # after the first bad image, the rest need not be read
