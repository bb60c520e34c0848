"""calibrate: the trained tails and the validation images in; the deployable graph and its contract out.

All that is chosen once training is over, on validation images as the graph itself sees them: calibration,
thresholds, prediction sets, when to abstain. The test split is not read.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from dermtune.config import BackboneConfig, Config
from dermtune.errors import DataError
from dermtune.goals import Goal, Method, Name
from dermtune.labels import lesion_class
from dermtune.leakage import EMBEDDINGS
from dermtune.shards import PackedImages, create_array, places
from dermtune.table import read_table, table_sha256
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Calibration, Contract, Diagnosis, InputSpec

if TYPE_CHECKING:
    from dermtune.inference import Looked

log = logging.getLogger(__name__)

_PARITY_IMAGES = 8
Share = Annotated[float, Field(gt=0, lt=1)]


class CalibrateConfig(Config):
    """What is chosen on validation, once training is over."""

    method: Method
    """`temperature` keeps the order of an image's classes, `vector` scales each, `isotonic` bends each."""
    test_views: Literal[1, 2, 4, 8]
    """Flips and turns of each image whose logits the graph averages; 1: the image as it is."""
    operating_points: Annotated[dict[Name, Goal], Field(min_length=1)]
    """By name: thresholds at which to act."""
    coverage: Share
    """Share of each class's images whose prediction set is to hold their class."""
    false_alarms: Share
    """Share of images such as those of validation that the model may abstain on."""
    similar_cases: Literal["none", "labels", "ids", "thumbnails"]
    """What the bundle tells of the training cases most like an image; thumbnails are pictures of patients."""


def calibrate(
    config: CalibrateConfig, *, backbone: BackboneConfig, images: Path, tails: Path, out: Path
) -> None:
    """Write the deployable graph, calibrated, and what its numbers mean.

    Raises:
        ConfigError: an operating point's target is no class of the task.
        DataError: the tails are missing, damaged or of other images, or the graph differs from torch.
    """
    from dermtune.calibration import decision_weights, fit_calibrator, log_loss, prior_shift, softmax
    from dermtune.conformal import set_thresholds
    from dermtune.deployable import (
        Deployable,
        check_parity,
        export_deployable,
        graph_numbers,
        set_numbers,
    )
    from dermtune.inference import look_at_images
    from dermtune.limits import choose_limits, references_of
    from dermtune.metrics import Predictions
    from dermtune.operating_points import choose_operating_points, require_targets
    from dermtune.tails import read_tails

    out.mkdir(parents=True, exist_ok=True)
    trained = read_tails(tails, backbone=backbone)
    if trained.lineage["images_sha256"] != table_sha256(images):
        raise DataError(f"{tails}: trained on another image table than that of {images}; re-run finetune")
    classes = trained.classes
    known = [lesion_class(name) for name in classes]
    malignant = tuple(one.malignant for one in known)
    require_targets(config.operating_points, dict(zip(classes, malignant, strict=True)))
    everything = read_table(images / "images.parquet")
    table = everything[everything["split"] == "val"].reset_index(drop=True)
    labels = np.array([classes.index(label) for label in table["label"]], dtype=np.int64)
    packed, found = PackedImages(images), places(table)
    module = Deployable(
        trained.trunk,
        trained.tails,
        input_size=backbone.input_size,
        test_views=config.test_views,
        references=len(references_of(table)),
        curves=config.method == "isotonic",
    )
    with atomic_path(out / "model.onnx") as temporary:
        export_deployable(module, temporary)
        seen = look_at_images(Graph.open(temporary, threads=1), packed, found, description="calibrate")
        shift = prior_shift(trained.frequencies, trained.class_balance)
        calibrator = fit_calibrator(seen.logits, labels, method=config.method, shift=shift)
        limits, reference = choose_limits(seen, table, false_alarms=config.false_alarms)
        set_numbers(module, temporary, graph_numbers(calibrator) | {"reference": reference})
        graph = Graph.open(temporary, threads=1)
        worst = check_parity(module, graph, (packed.decode(place) for place in found[:_PARITY_IMAGES]))
        log.info("model.onnx gives torch's probabilities within %.1e", worst)
        frozen = _frozen(graph, packed, everything, seen, module.frozen_features)
        with create_array(out / EMBEDDINGS, frozen.shape, "float16") as array:
            array.append(frozen)
    probabilities = calibrator(seen.logits)
    before = log_loss(softmax(seen.logits + shift), labels)
    after = log_loss(probabilities, labels)
    log.info("calibration by %s: negative log-likelihood %.4f, was %.4f", config.method, after, before)
    weights = decision_weights(trained.frequencies, trained.decision_balance)
    groups = table["group_id"].to_numpy(dtype=object)
    thresholds = set_thresholds(probabilities, labels, groups, config.coverage)
    on_val = Predictions(
        tuple(classes),
        probabilities,
        labels,
        (probabilities * weights).argmax(1),
        table["lesion_id"].to_numpy(dtype=object),
        malignant,
    )
    contract = Contract(
        classes=tuple(
            Diagnosis(one.name, one.title, one.malignant, float(weight), float(threshold))
            for one, weight, threshold in zip(known, weights, thresholds, strict=True)
        ),
        input=InputSpec(backbone.input_size, "RGB", "bilinear, antialiased, whole image"),
        calibration=Calibration(
            config.method,
            tuple(calibrator.scale.tolist()),
            tuple(calibrator.shift.tolist()),
            tuple(shift.tolist()),
            before,
            after,
        ),
        operating_points=choose_operating_points(on_val, config.operating_points),
        coverage=config.coverage,
        limits=limits,
        lineage=_lineage(trained.lineage, config),
    )
    with atomic_path(out / "model.json") as temporary:
        temporary.write_text(contract.to_json(), encoding="utf-8")
    if config.similar_cases != "none":
        train = everything[everything["split"] == "train"].reset_index(drop=True)
        _write_cases(graph, packed, train, out, shown=config.similar_cases)


def _write_cases(graph: Graph, packed: PackedImages, train: pd.DataFrame, out: Path, *, shown: str) -> None:
    from dermtune.cases import collect_cases

    tells_ids, shows = shown in {"ids", "thumbnails"}, shown == "thumbnails"
    cases = collect_cases(graph, train, packed, ids=tells_ids, thumbnails=shows)
    for name, data in cases.to_files().items():
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(data)


def _frozen(
    graph: Graph, packed: PackedImages, table: pd.DataFrame, val: "Looked", features: int
) -> NDArray[np.float16]:
    """What the frozen layers see of all images but the test ones, (N, C) of length one."""
    from dermtune.inference import look_at_images

    train = table[table["split"] == "train"].reset_index(drop=True)
    seen = look_at_images(graph, packed, places(train), description="embed whole images")
    others = table[table["split"] != "test"]
    found = np.empty((len(others), features), np.float16)
    found[(others["split"] == "train").to_numpy(bool)] = seen.frozen(features)
    found[(others["split"] == "val").to_numpy(bool)] = val.frozen(features)
    return found


def _lineage(trained: Mapping[str, Any], config: CalibrateConfig) -> dict[str, Any]:
    return {**trained, "calibrate": json.loads(config.model_dump_json())}
