"""The training cases that a bundle may carry: as much of them as params.yaml allows."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.shards import PackedImages, places
from dermtune_bundle.cases import Cases
from dermtune_bundle.pictures import thumbnail, to_jpeg

_SIDE = 96  # pixels


def collect_cases(
    table: pd.DataFrame,
    embeddings: NDArray[np.float32],
    packed: PackedImages,
    *,
    ids: bool,
    thumbnails: bool,
) -> Cases:
    """Take one image of each training lesion.

    Args:
        table: the training images' N rows of the image table.
        embeddings: (N, F), what the deployable graph gives of them.
        packed: where they lie.
        ids: whether their names may be told.
        thumbnails: whether they may be shown.
    """
    is_first = ~table["lesion_id"].duplicated().to_numpy()
    table, embeddings = table[is_first].reset_index(drop=True), embeddings[is_first]
    return Cases(
        embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12),
        table["label"].tolist(),
        table["image_id"].tolist() if ids else None,
        [to_jpeg(thumbnail(packed.decode(place), _SIDE)) for place in places(table)] if thumbnails else None,
    )
