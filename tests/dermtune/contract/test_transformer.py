"""A vision transformer goes the whole way, from activations to a bundle, as any other network does."""

from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from dermtune.gates import GatesConfig
from dermtune.network_size import size_of
from dermtune.params import Params
from dermtune.shards import open_array
from dermtune.stages.calibrate import calibrate
from dermtune.stages.embed import embed
from dermtune.stages.evaluate import evaluate
from dermtune.stages.export import export
from dermtune.stages.finetune import finetune
from dermtune.tails import read_tails
from dermtune.trunk import make_runner
from dermtune_bundle import Bundle

NAME, BLOCKS, WIDTH, PATCH, PREFIX = "test_vit", 6, 64, 16, 1  # a class token goes before the patches


def test_a_transformer_goes_from_views_to_a_bundle(
    params: Params, ingested: Path, augmented: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model(NAME, num_classes=0).state_dict(), weights)  # at 160 pixels, not the 64 used
    backbone = params.backbone.model_copy(update={"name": NAME, "weights": str(weights), "cut": 3})
    size = backbone.input_size
    folders = {name: tmp_path / name for name in ("embed", "finetune", "calibrate", "evaluate", "export")}

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
    quick = params.evaluate.model_copy(update={"bootstrap": 50})
    evaluate(quick, seed=1, images=ingested, model=folders["calibrate"], out=folders["evaluate"])
    lenient = params.export.model_copy(
        update={"gates": GatesConfig(auroc_macro=0.0, balanced_accuracy=0.0), "cost": None}
    )
    export(lenient, model=folders["calibrate"], evaluation=folders["evaluate"], out=folders["export"])
    assert Bundle.open(folders["export"]).check_golden() < 1e-4
