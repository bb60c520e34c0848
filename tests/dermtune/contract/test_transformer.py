"""A vision transformer goes from activations to the deployable graph, as any other network does."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from dermtune.network_size import size_of
from dermtune.params import Params
from dermtune.shards import PackedImages, open_array, places
from dermtune.stages.calibrate import calibrate
from dermtune.stages.embed import embed
from dermtune.stages.finetune import finetune
from dermtune.table import read_table
from dermtune.tails import read_tails
from dermtune.trunk import make_runner
from dermtune_bundle.graph import Graph

NAME, BLOCKS, WIDTH, PATCH, PREFIX = "test_vit", 6, 64, 16, 1  # a class token goes before the patches


def test_a_transformer_goes_from_views_to_the_deployable_graph(
    params: Params, ingested: Path, augmented: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), weights)  # at 160 pixels, not the 64 used
    backbone = params.backbone.model_copy(update={"name": NAME, "weights": str(weights), "cut": 3})
    size = backbone.input_size
    folders = {name: tmp_path / name for name in ("embed", "finetune", "calibrate")}

    embed(params.embed, backbone=backbone, views=augmented, out=folders["embed"])
    activations = open_array(folders["embed"] / "val.npy")
    assert activations.shape[1:] == (WIDTH, (size // PATCH) ** 2 + PREFIX, 1)

    finetune(
        params.finetune,
        backbone=backbone,
        seed=1,
        images=ingested,
        activations=folders["embed"],
        out=folders["finetune"],
        checkpoint=tmp_path / "checkpoints" / "finetune.safetensors",
    )
    trained = read_tails(folders["finetune"], backbone=backbone, images=ingested)
    views = np.array(open_array(augmented / "val.npy")[:4])
    run = make_runner(trained.trunk, input_size=size, dtype="float16", device="cpu:0")
    assert np.abs(next(run([views])) - activations[:4]).max() < 2e-2, "torch as ONNX Runtime, in 16 bits"
    counted = size_of(trained.trunk, trained.tails[0], input_size=size)
    assert counted.unshared > counted.parameters > counted.trained

    calibrate(
        params.calibrate,
        backbone=backbone,
        images=ingested,
        tails=folders["finetune"],
        out=folders["calibrate"],
    )
    # evaluate would rightly refuse: to random weights, images that differ look like crops of one another
    graph = Graph((folders["calibrate"] / "model.onnx").read_bytes(), name="model.onnx")
    packed = PackedImages(ingested)
    learned = read_table(ingested / "images.parquet", split="train")
    found = graph.run(packed.decode(places(learned)[0]))
    side = size // PATCH
    assert found.activation_map.shape[-2:] == (side, side)
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
