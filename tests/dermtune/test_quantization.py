"""A quantised graph keeps its contract and nearly its logits, and its file is the same each time."""

import shutil
from pathlib import Path

import numpy as np
import onnx

from dermtune.quantization import quantize
from dermtune.shards import PackedImages, places
from dermtune.table import read_table
from dermtune_bundle.graph import Graph


def test_it_computes_in_integers_and_says_nearly_the_same(
    calibrated: Path, ingested: Path, tmp_path: Path
) -> None:
    table = read_table(ingested / "images.parquet", split="val")
    packed = PackedImages(ingested)
    images = [packed.decode(place) for place in places(table)[:12]]
    paths = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for path in paths:
        shutil.copy(calibrated / "model.onnx", path)
        quantize(path, images)
    assert paths[0].read_bytes() == paths[1].read_bytes()

    model = onnx.load(paths[0])
    kept = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kept["logit_scale"] == kept["reference"] == onnx.TensorProto.FLOAT
    weights = [tensor for tensor in model.graph.initializer if tensor.name.endswith("weight_quantized")]
    assert len(weights) > 40
    assert max(np.abs(onnx.numpy_helper.to_array(one).astype(int)).max() for one in weights) <= 64

    exact, rounded = Graph.open(calibrated / "model.onnx"), Graph.open(paths[0])
    apart = [np.abs(exact.run(one).logits - rounded.run(one).logits) for one in images]
    spread = np.ptp([exact.run(one).logits for one in images])
    assert 0 < np.mean(apart) < 0.1 * spread
