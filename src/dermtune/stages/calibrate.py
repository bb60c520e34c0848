"""calibrate: the trained tails and the validation images in; the deployable graph and its contract out.

All that is chosen once training is over, on validation images as the graph itself sees them: calibration,
thresholds, prediction sets, when to abstain. The test split is not read.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from dermtune.config import BackboneConfig, Config
from dermtune.disk import array_bytes, require_room, weights_bytes
from dermtune.goals import Goal, Method, Name
from dermtune.labels import lesion_class
from dermtune.leakage import EMBEDDINGS
from dermtune.shards import PackedImages, create_array, places
from dermtune.table import read_table
from dermtune_bundle.cases import CASE_FILES
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Calibration, Contract, Diagnosis, InputSpec, Limits, Quantization

if TYPE_CHECKING:
    from dermtune.calibration import Calibrator
    from dermtune.deployable import Deployable
    from dermtune.inference import Looked

log = logging.getLogger(__name__)

_PARITY_IMAGES = 8
_RANGE_IMAGES = 128  # of training, by which int8's ranges are chosen
Share = Annotated[float, Field(gt=0, lt=1)]


class CalibrateConfig(Config):
    """What is chosen on validation, once training is over."""

    method: Method
    """`temperature` keeps the order of an image's classes, `vector` scales each, `isotonic` bends each."""
    precision: Literal["float32", "int8"]
    """How the graph computes; int8 is smaller and faster, and what it costs is measured."""
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
    from dermtune.calibration import decision_weights, log_loss, prior_shift, softmax
    from dermtune.conformal import set_thresholds
    from dermtune.deployable import Deployable
    from dermtune.inference import look_at_images
    from dermtune.limits import references_of
    from dermtune.metrics import Predictions
    from dermtune.operating_points import choose_operating_points, require_targets
    from dermtune.tails import read_tails

    out.mkdir(parents=True, exist_ok=True)
    trained = read_tails(tails, backbone=backbone, images=images)
    classes = trained.classes
    known = [lesion_class(name) for name in classes]
    malignant = tuple(one.malignant for one in known)
    require_targets(config.operating_points, dict(zip(classes, malignant, strict=True)))
    everything = read_table(images / "images.parquet")
    table = everything[everything["split"] == "val"].reset_index(drop=True)
    labels = np.array([classes.index(label) for label in table["label"]], dtype=np.int64)
    packed = PackedImages(images)
    shift = prior_shift(trained.frequencies, trained.class_balance)
    module = Deployable(
        trained.trunk,
        trained.tails,
        input_size=backbone.input_size,
        test_views=config.test_views,
        references=len(references_of(table)),
        curves=config.method == "isotonic",
    )
    rows = int((everything["split"] != "test").sum())
    embeddings = array_bytes(rows, (module.frozen_features,), "float16")
    # twice: what sets a graph's numbers writes it anew
    require_room("calibrate", 2 * weights_bytes(module) + embeddings, out)
    with atomic_path(out / "model.onnx") as temporary:
        validation = _Validation(packed, table, labels, shift)
        train = everything[everything["split"] == "train"].reset_index(drop=True)
        graph, fitted, quantization = _write_graph(module, temporary, config, validation, train)
        learned = look_at_images(graph, packed, places(train), description="embed whole images")
        frozen = _frozen(everything, {"train": learned, "val": fitted.seen}, module.frozen_features)
        with create_array(out / EMBEDDINGS, frozen.shape, "float16") as array:
            array.append(frozen)
    probabilities = fitted.probabilities
    before = log_loss(softmax(fitted.seen.logits + shift), labels)
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
        quantization=quantization,
        calibration=Calibration(
            config.method,
            tuple(fitted.calibrator.scale.tolist()),
            tuple(fitted.calibrator.shift.tolist()),
            tuple(shift.tolist()),
            before,
            after,
        ),
        operating_points=choose_operating_points(on_val, config.operating_points),
        coverage=config.coverage,
        limits=fitted.limits,
        lineage=_lineage(trained.lineage, config),
    )
    with atomic_path(out / "model.json") as temporary:
        temporary.write_text(contract.to_json(), encoding="utf-8")
    _write_cases(train, learned, packed, out, shown=config.similar_cases)


@dataclass(frozen=True)
class _Validation:
    packed: PackedImages
    table: pd.DataFrame
    labels: NDArray[np.int64]
    """(N,) columns of the probabilities."""
    shift: NDArray[np.float64]
    """(K,) undoes the class weights of training."""


@dataclass(frozen=True)
class _Fitted:
    """What is chosen for a graph by what it says of the validation images."""

    seen: "Looked"
    calibrator: "Calibrator"
    limits: Limits

    @property
    def probabilities(self) -> NDArray[np.float64]:
        return self.calibrator(self.seen.logits)


def _write_graph(
    module: "Deployable", path: Path, config: CalibrateConfig, validation: _Validation, train: pd.DataFrame
) -> tuple[Graph, _Fitted, Quantization | None]:
    """Export the module, calibrate it, and give it 8-bit integers where they are asked for."""
    from dermtune.deployable import check_parity, export_deployable
    from dermtune.quantization import quantize

    packed = validation.packed
    export_deployable(module, path)
    fitted = _fit(module, path, config, validation)
    some = (packed.decode(place) for place in places(validation.table)[:_PARITY_IMAGES])
    worst = check_parity(module, Graph.open(path, threads=1), some)
    log.info("model.onnx gives torch's probabilities within %.1e", worst)
    quantization = None
    if config.precision == "int8":
        quantize(path, (packed.decode(place) for place in places(train)[:: -(-len(train) // _RANGE_IMAGES)]))
        exact, fitted = fitted, _fit(module, path, config, validation)
        quantization = _loss(exact.probabilities, fitted.probabilities, validation.labels)
    return Graph.open(path, threads=1), fitted, quantization


def _fit(module: "Deployable", path: Path, config: CalibrateConfig, validation: _Validation) -> _Fitted:
    """Calibrate the graph at a path as it is, and the module with it."""
    from dermtune.calibration import fit_calibrator
    from dermtune.deployable import graph_numbers, set_numbers
    from dermtune.inference import look_at_images
    from dermtune.limits import choose_limits

    found, graph = places(validation.table), Graph.open(path, threads=1)
    seen = look_at_images(graph, validation.packed, found, description="calibrate")
    calibrator = fit_calibrator(seen.logits, validation.labels, method=config.method, shift=validation.shift)
    limits, reference = choose_limits(seen, validation.table, false_alarms=config.false_alarms)
    set_numbers(module, path, graph_numbers(calibrator) | {"reference": reference})
    return _Fitted(seen, calibrator, limits)


def _loss(
    exact: NDArray[np.float64], rounded: NDArray[np.float64], labels: NDArray[np.int64]
) -> Quantization:
    """What probabilities (N, K) lost by 8-bit integers."""
    from dermtune.metrics import macro_auroc

    apart = np.abs(exact - rounded)
    before, after = macro_auroc(exact, labels), macro_auroc(rounded, labels)
    log.info("int8: AUROC on validation %s, was %s", after, before)
    return Quantization(before, after, float(apart.mean()), float(apart.max()))


def _write_cases(
    train: pd.DataFrame, learned: "Looked", packed: PackedImages, out: Path, *, shown: str
) -> None:
    from dermtune.cases import collect_cases

    for name in CASE_FILES:  # of an earlier run, that was allowed to tell more
        (out / name).unlink(missing_ok=True)
    if shown == "none":
        return
    tells_ids, shows = shown in {"ids", "thumbnails"}, shown == "thumbnails"
    cases = collect_cases(train, learned.embeddings, packed, ids=tells_ids, thumbnails=shows)
    for name, data in cases.to_files().items():
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(data)


def _frozen(table: pd.DataFrame, seen: Mapping[str, "Looked"], features: int) -> NDArray[np.float16]:
    """What the frozen layers see of all images but the test ones, (N, C) of length one, in their order."""
    splits = table.loc[table["split"] != "test", "split"].to_numpy()
    found = np.empty((len(splits), features), np.float16)
    for split, looked in seen.items():
        found[splits == split] = looked.frozen(features)
    return found


def _lineage(trained: Mapping[str, Any], config: CalibrateConfig) -> dict[str, Any]:
    return {**trained, "calibrate": json.loads(config.model_dump_json())}
