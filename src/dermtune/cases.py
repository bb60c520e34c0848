"""The training cases that a bundle may carry: as much of them as params.yaml allows."""

import numpy as np
import pandas as pd

from dermtune.inference import look_at_images
from dermtune.shards import PackedImages, places
from dermtune_bundle.cases import Cases
from dermtune_bundle.graph import Graph
from dermtune_bundle.pictures import thumbnail, to_jpeg

_SIDE = 96  # pixels


def collect_cases(
    graph: Graph, table: pd.DataFrame, packed: PackedImages, *, ids: bool, thumbnails: bool
) -> Cases:
    """Embed one image of each training lesion.

    Args:
        graph: the deployable graph, with one thread.
        table: the training images' rows of the image table.
        packed: where they lie.
        ids: whether their names may be told.
        thumbnails: whether they may be shown.
    """
    table = table.drop_duplicates("lesion_id").reset_index(drop=True)
    found = places(table)
    embeddings = look_at_images(graph, packed, found, description="similar cases").embeddings
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)

    return Cases(
        unit.astype(np.float32),
        table["label"].tolist(),
        table["image_id"].tolist() if ids else None,
        [to_jpeg(thumbnail(packed.decode(place), _SIDE)) for place in found] if thumbnails else None,
    )
