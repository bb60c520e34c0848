"""A model leaves only above every gate, byte for byte as it was evaluated, and opens where it lands."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dermtune.errors import DataError, GateError
from dermtune.gates import GatesConfig
from dermtune.stages.export import ExportConfig, export
from dermtune_bundle import Bundle, Manifest
from dermtune_bundle.cases import Cases

CONFIG = ExportConfig(gates=GatesConfig(auroc_macro=0.7, balanced_accuracy=0.3), cost=None)
Inputs = dict[str, Path]


@pytest.fixture
def inputs(tmp_path: Path, make_graph: Callable[..., bytes], tiny_manifest: Manifest) -> Inputs:
    """What finetune and evaluate leave behind, and where the bundle goes."""
    paths = {name: tmp_path / name for name in ("model", "evaluation", "out")}
    paths["model"].mkdir()
    paths["evaluation"].mkdir()
    values = json.loads(tiny_manifest.to_json())
    metrics = values.pop("metrics")
    for key in ("schema_version", "name", "notice", "golden"):
        del values[key]
    graph = make_graph()
    metrics["model_sha256"] = hashlib.sha256(graph).hexdigest()
    (paths["model"] / "model.onnx").write_bytes(graph)
    (paths["model"] / "model.json").write_text(json.dumps(values))
    (paths["evaluation"] / "metrics.json").write_text(json.dumps(metrics))
    return paths


def change_metrics(inputs: Inputs, **changes: object) -> None:
    path = inputs["evaluation"] / "metrics.json"
    metrics: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(metrics | changes))


def test_the_bundle_opens_and_holds_the_evaluated_graph_and_metrics(inputs: Inputs) -> None:
    export(CONFIG, **inputs)
    bundle = Bundle.open(inputs["out"])
    assert (inputs["out"] / "model.onnx").read_bytes() == (inputs["model"] / "model.onnx").read_bytes()
    assert bundle.manifest.metrics == json.loads((inputs["evaluation"] / "metrics.json").read_text())
    assert bundle.manifest.name == "dermtune-3-classes"
    golden = {f"golden-{index}.png" for index in range(4)}
    written = {"model.onnx", "bundle.json", "MODEL_CARD.md", "MODEL_CARD.html", "SHA256SUMS"}
    assert {path.name for path in inputs["out"].iterdir()} == golden | written
    assert bundle.check_golden() < 1e-6


def test_training_cases_travel_where_calibrate_wrote_them(inputs: Inputs) -> None:
    cases = Cases(np.eye(2, 3, dtype=np.float16), ["mel", "nv"], None, None)
    for name, data in cases.to_files().items():
        (inputs["model"] / name).write_bytes(data)
    export(CONFIG, **inputs)
    carried = Bundle.open(inputs["out"]).cases
    assert carried is not None
    assert carried.labels == ["mel", "nv"]


def test_exporting_twice_gives_the_same_version(inputs: Inputs) -> None:
    export(CONFIG, **inputs)
    version = Bundle.open(inputs["out"]).version
    export(CONFIG, **inputs)
    assert Bundle.open(inputs["out"]).version == version


def test_each_missed_gate_is_named_with_its_value_interval_and_need(inputs: Inputs) -> None:
    config = ExportConfig(gates=GatesConfig(auroc_macro=0.95, balanced_accuracy=0.75), cost=None)
    with pytest.raises(GateError) as caught:
        export(config, **inputs)
    assert str(caught.value) == (
        "not exported: auroc_macro is 0.900 (95% interval 0.800 to 0.950), at least 0.950 is needed; "
        "balanced_accuracy is 0.700 (95% interval 0.600 to 0.800), at least 0.750 is needed; "
        "train a better model or lower export.gates"
    )
    assert not inputs["out"].exists()


def test_a_value_at_the_gate_passes(inputs: Inputs) -> None:
    export(ExportConfig(gates=GatesConfig(auroc_macro=0.9, balanced_accuracy=0.7), cost=None), **inputs)
    assert inputs["out"].exists()


def test_an_undefined_metric_misses_even_a_gate_of_zero(inputs: Inputs) -> None:
    undefined = {"value": None, "low": None, "high": None, "reason": "only one class"}
    change_metrics(inputs, balanced_accuracy=undefined)
    config = ExportConfig(gates=GatesConfig(auroc_macro=0.0, balanced_accuracy=0.0), cost=None)
    with pytest.raises(
        GateError, match=r"balanced_accuracy is undefined \(only one class\), at least 0\.000"
    ):
        export(config, **inputs)


def test_metrics_of_another_model_are_refused(inputs: Inputs) -> None:
    change_metrics(inputs, model_sha256="0" * 64)
    with pytest.raises(DataError, match=r"measured on another model\.onnx; re-run evaluate"):
        export(CONFIG, **inputs)
    graph = (inputs["model"] / "model.onnx").read_bytes()
    change_metrics(inputs, model_sha256=hashlib.sha256(graph).hexdigest())
    export(CONFIG, **inputs)


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("model/model.onnx", "calibrate"),
        ("model/model.json", "calibrate"),
        ("evaluation/metrics.json", "evaluate"),
    ],
)
def test_a_missing_input_names_the_stage_that_writes_it(inputs: Inputs, path: str, stage: str) -> None:
    (inputs["out"].parent / path).unlink()
    with pytest.raises(DataError, match=f"{path}: No such file or directory; re-run {stage}"):
        export(CONFIG, **inputs)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"auroc": 1}', '{"auroc": {"macro": {"value": "high"}}}'])
def test_damaged_metrics_are_refused(inputs: Inputs, text: str) -> None:
    (inputs["evaluation"] / "metrics.json").write_text(text)
    with pytest.raises(DataError, match=r"metrics\.json: not the metrics that evaluate writes"):
        export(CONFIG, **inputs)


def test_a_damaged_contract_is_refused_with_its_key(inputs: Inputs) -> None:
    (inputs["model"] / "model.json").write_text("{}")
    with pytest.raises(DataError, match=r"model\.json: calibration: missing; re-run calibrate"):
        export(CONFIG, **inputs)


@pytest.mark.parametrize("gate", [-0.1, 1.1, "high"])
def test_an_impossible_gate_is_refused(gate: object) -> None:
    with pytest.raises(ValidationError):
        ExportConfig.model_validate({"gates": {"auroc_macro": gate, "balanced_accuracy": 0.5}})
