"""finetune: stored activations in; the trained tail, its learning curves and the deployable graph out.

The graph is calibrated and its operating point chosen on validation images; the test split is not read.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from dermtune.config import BackboneConfig, Config, Device
from dermtune.errors import ConfigError
from dermtune.labels import lesion_class, require_class
from dermtune.shards import PackedImages, places
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Calibration, Contract, Diagnosis, InputSpec, OperatingPoint

if TYPE_CHECKING:
    from dermtune.deployable import Deployable
    from dermtune.task import Task
    from dermtune.training import Resume

log = logging.getLogger(__name__)

_PARITY_IMAGES = 8
Unit = Annotated[float, Field(ge=0, le=1)]


def _not_one(folds: int) -> int:
    if folds == 1:
        raise ValueError("expected 0 for none, or at least 2")
    return folds


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
    """In the loss: 0 weighs images alike, 1 weighs classes alike."""
    decision_balance: Unit
    """When one class is named: 0 names the most probable, 1 gives each class's recall the same weight."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    ema: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the averaged weights, per step."""
    patience: Annotated[int, Field(ge=1)]
    """Epochs without a better validation AUROC before training stops."""
    ensemble: Annotated[int, Field(ge=1, le=20)]
    """Tails that are trained from different seeds, and whose logits are averaged; 1: a single one."""
    test_views: Literal[1, 2, 4, 8]
    """Flips and turns of each image whose logits the graph averages; 1: the image as it is."""
    folds: Annotated[int, Field(ge=0, le=20), AfterValidator(_not_one)]
    """Cross-validation on the training images: this many more trainings, for an estimate; 0: none."""
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
    from safetensors.torch import save_file
    from torch import nn

    from dermtune.calibration import decision_weights, prior_shift
    from dermtune.deployable import Deployable
    from dermtune.figures import learning_curves, write_figure
    from dermtune.task import read_task
    from dermtune.training import Resume, class_frequencies, train_ensemble

    out.mkdir(parents=True, exist_ok=True)
    task = read_task(images, activations, backbone=backbone, seed=seed)
    names = task.classes
    if config.target not in names:
        raise ConfigError(
            f"finetune.target: {config.target!r} is no class; the classes are {', '.join(names)}"
        )
    lineage = task.lineage | {"finetune": config.model_dump()}
    resume = Resume(checkpoint, fingerprint=json.dumps(lineage, sort_keys=True))
    cross_validation = _cross_validate(config, task, seed=seed, out=out, resume=resume)
    tails, histories = train_ensemble(task, config, seed=seed, resume=resume)
    frequencies = class_frequencies(task.train.labels, len(names))
    module = Deployable(
        task.network.trunk,
        tails,
        input_size=backbone.input_size,
        logit_shift=prior_shift(frequencies, config.class_balance).tolist(),
        test_views=config.test_views,
    )
    calibration, scores = _calibrate_and_write(module, task, images, out / "model.onnx")
    weights = decision_weights(frequencies, config.decision_balance)
    contract = Contract(
        classes=tuple(
            Diagnosis(known.name, known.title, known.malignant, float(weight))
            for known, weight in zip(map(lesion_class, names), weights, strict=True)
        ),
        input=InputSpec(backbone.input_size, "RGB", "bilinear, antialiased, whole image"),
        calibration=calibration,
        operating_points=(operating_point(config, scores[:, names.index(config.target)], task.val_table),),
        lineage=lineage | cross_validation,
    )
    with atomic_path(out / "tails.safetensors") as temporary:
        save_file(nn.ModuleList(tails).state_dict(), temporary)
    with atomic_path(out / "model.json") as temporary:
        temporary.write_text(contract.to_json(), encoding="utf-8")
    curves = pd.DataFrame([asdict(record) for history in histories for record in history])
    curves = curves.groupby("epoch", as_index=False).mean()  # of an ensemble, the mean of its members
    with atomic_path(out / "history.csv") as temporary:
        curves.to_csv(temporary, index=False, float_format="%.6g")
    write_figure(learning_curves(curves), out / "learning_curves.png")
    resume.forget()


def _cross_validate(
    config: FinetuneConfig, task: "Task", *, seed: int, out: Path, resume: "Resume"
) -> dict[str, Any]:
    """Run the folds that the config asks for; gives what the lineage says of them."""
    from dermtune.cross_validation import cross_validate, summarize_folds

    path = out / "cross_validation.csv"
    path.unlink(missing_ok=True)
    if not config.folds:
        return {}
    folds = cross_validate(task, config, seed=seed, resume=resume)
    with atomic_path(path) as temporary:
        folds.to_csv(temporary, index_label="fold", float_format="%.6g")
    found = summarize_folds(folds)
    for metric, numbers in found.items():
        log.info("%d folds: %s %.3f [%.3f, %.3f]", config.folds, metric, *numbers.values())
    return {"cross_validation": found}


def _calibrate_and_write(
    module: "Deployable", task: "Task", images: Path, path: Path
) -> tuple[Calibration, NDArray[np.float64]]:
    """Write the graph; its temperature is fitted on what the graph itself says of the validation images.

    On the images as it decodes and resizes them, that is, not as they were stored. Gives the calibrated
    probabilities (N, K) as well, by which thresholds are chosen.
    """
    from dermtune.calibration import fit_temperature, softmax
    from dermtune.deployable import check_parity, export_deployable
    from dermtune.inference import predict_images

    packed, found = PackedImages(images), places(task.val_table)
    with atomic_path(path) as temporary:
        export_deployable(module, temporary)
        raw = predict_images(Graph.open(temporary, threads=1), packed, found, description="calibrate")
        logits = np.log(np.maximum(raw, np.finfo(np.float32).tiny))  # but for a constant, which is no matter
        fitted = fit_temperature(logits, task.val.labels.numpy())
        module.temperature = fitted.temperature
        export_deployable(module, temporary)
        some = (packed.decode(place) for place in found[:_PARITY_IMAGES])
        worst = check_parity(module, Graph.open(temporary, threads=1), some)
        log.info("model.onnx gives torch's probabilities within %.1e", worst)
    calibration = Calibration(
        method="temperature",
        temperature=fitted.temperature,
        nll_before=fitted.nll_before,
        nll_after=fitted.nll_after,
        logit_shift=tuple(module.logit_shift.tolist()),
    )
    return calibration, softmax(logits, fitted.temperature)


def operating_point(config: FinetuneConfig, scores: NDArray[np.float64], val: pd.DataFrame) -> OperatingPoint:
    """The threshold of the target's probability that the config asks for, on validation.

    Args:
        config: the target, and the sensitivity that it must have.
        scores: (N,) its probability.
        val: the image table's rows of the same images.
    """
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
