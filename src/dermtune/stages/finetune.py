"""finetune: stored activations in; the trained tail, its learning curves and the deployable graph out.

The graph is calibrated and its operating point chosen on validation images; the test split is not read.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.config import BackboneConfig
from dermtune.labels import lesion_class
from dermtune.recipe import FinetuneConfig
from dermtune.shards import PackedImages, places
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Calibration, Contract, Diagnosis, InputSpec

if TYPE_CHECKING:
    from dermtune.checkpoint import Resume
    from dermtune.deployable import Deployable
    from dermtune.task import Task

log = logging.getLogger(__name__)

_PARITY_IMAGES = 8
_UNCALIBRATED = 2.0  # not 1: the exporter takes a division by 1 out, and no temperature could be set then


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
        ConfigError: an operating point's target is no class of the task.
        DataError: the activations are stale, foreign or missing, or the graph differs from torch.
    """
    from safetensors.torch import save_file
    from torch import nn

    from dermtune.calibration import decision_weights, prior_shift
    from dermtune.checkpoint import Resume
    from dermtune.deployable import Deployable
    from dermtune.figures import learning_curves, write_figure
    from dermtune.metrics import Predictions
    from dermtune.operating_points import choose_operating_points, require_targets
    from dermtune.task import read_task
    from dermtune.training import class_frequencies, train_ensemble

    out.mkdir(parents=True, exist_ok=True)
    task = read_task(images, activations, backbone=backbone, seed=seed)
    known = [lesion_class(name) for name in task.classes]
    malignant = tuple(one.malignant for one in known)
    require_targets(config.operating_points, dict(zip(task.classes, malignant, strict=True)))
    lineage = task.lineage | {"finetune": config.model_dump()}
    resume = Resume(checkpoint, fingerprint=json.dumps(lineage, sort_keys=True))
    cross_validation = _cross_validate(config, task, seed=seed, out=out, resume=resume)
    tails, histories = train_ensemble(task, config, seed=seed, resume=resume)
    frequencies = class_frequencies(task.train.labels, len(known))
    module = Deployable(
        task.network.trunk,
        tails,
        input_size=backbone.input_size,
        logit_shift=prior_shift(frequencies, config.class_balance).tolist(),
        temperature=_UNCALIBRATED,
        test_views=config.test_views,
    )
    calibration, scores = _calibrate_and_write(module, task, images, out / "model.onnx")
    weights = decision_weights(frequencies, config.decision_balance)
    on_val = Predictions(
        tuple(task.classes),
        scores,
        task.val.labels.numpy(),
        (scores * weights).argmax(1),
        task.val_table["lesion_id"].to_numpy(dtype=object),
        malignant,
    )
    contract = Contract(
        classes=tuple(
            Diagnosis(one.name, one.title, one.malignant, float(weight))
            for one, weight in zip(known, weights, strict=True)
        ),
        input=InputSpec(backbone.input_size, "RGB", "bilinear, antialiased, whole image"),
        calibration=calibration,
        operating_points=choose_operating_points(on_val, config.operating_points),
        lineage=lineage | cross_validation,
    )
    with atomic_path(out / "tails.safetensors") as temporary:
        save_file(nn.ModuleList(tails).state_dict(), temporary)
    with atomic_path(out / "model.json") as temporary:
        temporary.write_text(contract.to_json(), encoding="utf-8")
    curves = pd.DataFrame([asdict(record) for history in histories for record in history])
    # of an ensemble, the mean of its members, as long as all were training
    whole = curves[curves["epoch"] < min(map(len, histories))]
    curves = whole.groupby("epoch", as_index=False).mean()
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
        shown = ("undefined" if number is None else f"{number:.3f}" for number in numbers.values())
        log.info("%d folds: %s %s [%s, %s]", config.folds, metric, *shown)
    return {"cross_validation": {"folds": config.folds, "of": "one tail, no test views", **found}}


def _calibrate_and_write(
    module: "Deployable", task: "Task", images: Path, path: Path
) -> tuple[Calibration, NDArray[np.float64]]:
    """Write the graph; its temperature is fitted on what the graph itself says of the validation images.

    On the images as it decodes and resizes them, that is, not as they were stored. Gives the calibrated
    probabilities (N, K) as well, by which thresholds are chosen.
    """
    from dermtune.calibration import fit_temperature, softmax
    from dermtune.deployable import check_parity, export_deployable, set_temperature
    from dermtune.inference import predict_images

    packed, found = PackedImages(images), places(task.val_table)
    with atomic_path(path) as temporary:
        export_deployable(module, temporary)
        raw = predict_images(Graph.open(temporary, threads=1), packed, found, description="calibrate")
        # but for a constant, which is no matter
        logits = _UNCALIBRATED * np.log(np.maximum(raw, np.finfo(np.float32).tiny))
        fitted = fit_temperature(logits, task.val.labels.numpy())
        set_temperature(module, temporary, fitted.temperature)
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
