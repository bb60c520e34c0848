import json
from pathlib import Path

import pytest

from dermtune.errors import DataError
from dermtune.params import Params
from dermtune.studies.model import read_both


def test_parts_of_different_trainings_are_refused(
    params: Params, ingested: Path, finetuned: Path, calibrated: Path, tmp_path: Path
) -> None:
    inputs = {"images": ingested, "tails": finetuned, "model": calibrated}
    trained, graph, contract = read_both(params.backbone, **inputs)
    assert [known.name for known in contract.classes] == trained.classes
    assert graph.num_classes == len(trained.classes)
    with pytest.raises(DataError, match="re-run calibrate"):
        read_both(params.backbone, **inputs | {"model": tmp_path})
    other = tmp_path / "model"
    other.mkdir()
    (other / "model.onnx").write_bytes((inputs["model"] / "model.onnx").read_bytes())
    changed = json.loads((inputs["model"] / "model.json").read_text())
    changed["lineage"]["seed"] = -1
    (other / "model.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match="not made of the tails of"):
        read_both(params.backbone, **inputs | {"model": other})
    table = tmp_path / "images"
    table.mkdir()
    (table / "images.parquet").write_bytes(b"another")
    with pytest.raises(DataError, match="trained on another image table"):
        read_both(params.backbone, **inputs | {"images": table})
