"""A training case a lesion, and no more told of it than allowed."""

from pathlib import Path

import numpy as np
import pytest

from dermtune.cases import collect_cases
from dermtune.inference import look_at_images
from dermtune.shards import PackedImages, places
from dermtune.table import read_table
from dermtune_bundle.decode import decode
from dermtune_bundle.graph import Graph


@pytest.mark.parametrize(("ids", "thumbnails"), [(False, False), (True, False), (True, True)])
def test_each_lesion_comes_once_with_what_may_be_told(
    calibrated: Path, ingested: Path, *, ids: bool, thumbnails: bool
) -> None:
    train = read_table(ingested / "images.parquet", split="train")
    train = train.groupby("lesion_id").head(2).head(7).reset_index(drop=True)
    graph = Graph.open(calibrated / "model.onnx", threads=1)
    packed = PackedImages(ingested)
    seen = look_at_images(graph, packed, places(train), description="test")
    cases = collect_cases(train, seen.embeddings, packed, ids=ids, thumbnails=thumbnails)
    first = train.drop_duplicates("lesion_id")
    assert cases.labels == first["label"].tolist()
    assert np.allclose(np.linalg.norm(cases.embeddings, axis=1), 1, atol=1e-5)
    assert cases.ids == (first["image_id"].tolist() if ids else None)
    if thumbnails:
        assert cases.thumbnails is not None
        assert all(max(decode(one, name="x").shape) == 96 for one in cases.thumbnails)
    else:
        assert cases.thumbnails is None
