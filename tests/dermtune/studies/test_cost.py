import json
from pathlib import Path

import pandas as pd
import pytest

from dermtune.network_size import Size
from dermtune.params import Params
from dermtune.stages.export import ExportConfig, export
from dermtune.studies import cost
from dermtune.studies.cost import run_cost_study, training_work

STAGES = ["ingest", "augment", "embed", "finetune", "calibrate", "evaluate", "export"]


@pytest.fixture(scope="module")
def small(params: Params) -> Params:
    return params.model_copy(
        update={
            "augment": params.augment.model_copy(update={"views": 1}),
            "finetune": params.finetune.model_copy(update={"epochs": 1}),
            "evaluate": params.evaluate.model_copy(update={"bootstrap": 100}),
        }
    )


def test_a_broken_off_study_goes_on_and_its_model_is_the_pipelines(
    small: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "study" / "cost"
    (tmp_path / "splits.csv").write_text("sha256,split\n")
    given = {"splits": tmp_path / "splits.csv", "key": tmp_path / "key", "checkpoint": checkpoint, "out": out}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cost, "calibrate", stop)
        with pytest.raises(KeyboardInterrupt):
            run_cost_study(small, **given)
    with monkeypatch.context() as patch:
        patch.setattr(cost, "finetune", stop)  # it is done
        patch.setattr(cost.shutil, "rmtree", lambda _: None)
        table = run_cost_study(small, **given)
    assert table["stage"].tolist() == STAGES
    assert (table[["seconds", "joules", "grams"]] > 0).all(axis=None)
    pd.testing.assert_frame_equal(table, pd.read_csv(out / "cost.csv"), rtol=1e-4)
    found = json.loads((out / "cost.json").read_text())
    assert found["total"]["seconds"] == pytest.approx(table["seconds"].sum())
    assert (out / "cost.html").is_file()

    card = exported(small, checkpoint / "data", out / "cost.json", tmp_path / "bundle")
    assert f"{table['joules'].sum() / 3600:.3g}" in card
    assert "electricity of DEU" in card
    assert "parameters" in card
    (out / "cost.json").write_text(json.dumps(found | {"model_sha256": "another"}))
    card = exported(small, checkpoint / "data", out / "cost.json", tmp_path / "bundle2")
    assert "was not measured" in card


def exported(params: Params, work: Path, path: Path, out: Path) -> str:
    gates = params.export.gates.model_copy(update={"auroc_macro": 0, "balanced_accuracy": 0})
    config = ExportConfig(gates=gates, cost=str(path))
    export(config, model=work / "calibrate", evaluation=work / "evaluate", out=out)
    return (out / "MODEL_CARD.md").read_text()


def test_a_training_takes_the_trunk_once_a_view_and_the_tail_each_epoch() -> None:
    size = Size(parameters=10, trained=4, unshared=10, multiply_adds=100, trained_multiply_adds=30)
    work = training_work(size, images=7, views=3, epochs=5)
    assert work == {"embed": 7 * 3 * 70, "finetune": 3 * 7 * 5 * 30, "whole": 3 * 7 * 5 * 100}
