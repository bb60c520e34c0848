"""finetune: stored activations in; the trained tail, its learning curves and the deployable graph out.

The graph is calibrated and its operating point chosen on validation images; the test split is not read.
"""

import json
import logging
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from dermtune.config import BackboneConfig, Config, Device
from dermtune.errors import ConfigError
from dermtune.labels import lesion_class, require_class
from dermtune.shards import PackedImages, open_array, places, view_paths
from dermtune.table import classes_of, read_table, table_sha256
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Calibration, Contract, Diagnosis, InputSpec, OperatingPoint

log = logging.getLogger(__name__)

_PARITY_IMAGES = 8
Unit = Annotated[float, Field(ge=0, le=1)]


class FinetuneConfig(Config):
    """The recipe of the tail's training."""

    epochs: Annotated[int, Field(ge=1)]
    head_epochs: Annotated[int, Field(ge=0)]
    """Epochs in which the classifier alone learns."""
    batch_size: Annotated[int, Field(ge=2)]
    lr: Annotated[float, Field(gt=0, le=1)]
    """Peak learning rate of the classifier."""
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    """Each block back from the classifier learns at this share of the next one's rate."""
    weight_decay: Annotated[float, Field(ge=0)]
    warmup: Annotated[float, Field(ge=0, lt=1)]
    """Share of the steps over which the rate rises."""
    class_balance: Unit
    """0 weighs images alike, 1 weighs classes alike."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the averaged weights, per step."""
    patience: Annotated[int, Field(ge=1)]
    """Epochs without a better validation AUROC before training stops."""
    target: Annotated[str, AfterValidator(require_class)]
    """The class that must not be missed."""
    target_sensitivity: Annotated[float, Field(gt=0, le=1)]
    """Its threshold is the highest that reaches this sensitivity on validation."""
    device: Device


def finetune(
    config: FinetuneConfig,
    *,
    backbone: BackboneConfig,
    seed: int,
    images: Path,
    activations: Path,
    out: Path,
    checkpoint: Path,
) -> None:
    """Train the tail on stored activations, calibrate it, and write the deployable graph.

    Raises:
        ConfigError: `target` is no class of the task.
        DataError: the activations are stale, foreign or missing, or the graph differs from torch.
    """
    import torch
    from safetensors.torch import save_file

    from dermtune.backbone import load_backbone
    from dermtune.calibration import fit_temperature
    from dermtune.deployable import Deployable, check_parity, export_deployable
    from dermtune.figures import learning_curves, write_figure
    from dermtune.inference import predict_images
    from dermtune.training import Examples, predict_logits, train_tail
    from dermtune.trunk import Fingerprint, resolve_device

    out.mkdir(parents=True, exist_ok=True)
    train, val = (read_table(images / "images.parquet", split=split) for split in ("train", "val"))
    names = classes_of(train)
    if config.target not in names:
        raise ConfigError(
            f"finetune.target: {config.target!r} is no class; the classes are {', '.join(names)}"
        )
    device = resolve_device(config.device, key="finetune.device")
    network = load_backbone(backbone)
    made_from = Fingerprint.read(activations / "activations.json")
    images_sha256 = table_sha256(images)
    made_from.require(network.trunk, backbone, images_sha256=images_sha256)
    targets = {name: index for index, name in enumerate(names)}
    train_set, val_set = (
        Examples(
            [open_array(path, rows=len(table)) for path in paths], torch.tensor(table["label"].map(targets))
        )
        for table, paths in ((train, view_paths(activations)), (val, [activations / "val.npy"]))
    )
    lineage = {
        "source": ", ".join(sorted(train["source"].unique())),
        "images": {
            split: {name: int((table["label"] == name).sum()) for name in names}
            for split, table in (("train", train), ("val", val))
        },
        "images_sha256": images_sha256,
        "backbone": backbone.model_dump(),
        "activations": asdict(made_from),
        "finetune": config.model_dump(),
        "seed": seed,
        "versions": {package: version(package) for package in ("dermtune", "torch", "timm", "onnxruntime")},
    }
    tail, history = train_tail(
        network.tail(len(names), dropout=config.dropout, seed=seed),
        train_set,
        val_set,
        config,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        fingerprint=json.dumps(lineage, sort_keys=True),
    )
    tail = tail.to("cpu")
    logits, labels = predict_logits(tail, val_set.views[0], "cpu").numpy(), val_set.labels.numpy()
    fitted = fit_temperature(logits, labels)
    module = Deployable(network.trunk, tail, input_size=backbone.input_size, temperature=fitted.temperature)
    packed, val_places = PackedImages(images), places(val)
    with atomic_path(out / "model.onnx") as temporary:
        export_deployable(module, temporary)
        graph = Graph.open(temporary, threads=1)
        some = (packed.decode(place) for place in val_places[:_PARITY_IMAGES])
        log.info("model.onnx gives torch's probabilities within %.1e", check_parity(module, graph, some))
    # The threshold is the graph's own: on the images as it decodes and resizes them, not as they were stored.
    scores = predict_images(graph, packed, val_places, description="threshold")
    contract = Contract(
        classes=tuple(
            Diagnosis(known.name, known.title, known.malignant) for known in map(lesion_class, names)
        ),
        input=InputSpec(backbone.input_size, "RGB", "bilinear, antialiased, whole image"),
        calibration=Calibration("temperature", fitted.temperature, fitted.nll_before, fitted.nll_after),
        operating_points=(_operating_point(config, scores[:, targets[config.target]], val),),
        lineage=lineage,
    )
    with atomic_path(out / "tail.safetensors") as temporary:
        save_file(tail.state_dict(), temporary)
    with atomic_path(out / "model.json") as temporary:
        temporary.write_text(contract.to_json(), encoding="utf-8")
    curves = pd.DataFrame([asdict(record) for record in history])
    with atomic_path(out / "history.csv") as temporary:
        curves.to_csv(temporary, index=False, float_format="%.6g")
    write_figure(learning_curves(curves), out / "learning_curves.png")


def _operating_point(
    config: FinetuneConfig, scores: NDArray[np.float64], val: pd.DataFrame
) -> OperatingPoint:
    from dermtune.calibration import threshold_for_sensitivity

    positive = (val["label"] == config.target).to_numpy(dtype=bool)
    chosen = threshold_for_sensitivity(scores, positive, config.target_sensitivity)
    return OperatingPoint(
        name=config.target,
        target=config.target,
        threshold=chosen.threshold,
        goal=f"sensitivity >= {config.target_sensitivity:.2f} on validation",
        sensitivity=chosen.sensitivity,
        specificity=chosen.specificity,
    )
