import json
from pathlib import Path

import pandas as pd
import pytest

from dermtune.errors import ConfigError
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
    checkpoint, out, work = tmp_path / "checkpoint", tmp_path / "study" / "cost", tmp_path / "work"
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
        patch.setattr(cost.shutil, "rmtree", lambda folder: folder.rename(work))
        table = run_cost_study(small, **given)
    assert not checkpoint.exists()
    assert table["stage"].tolist() == STAGES
    assert (table[["seconds", "joules", "grams"]] > 0).all(axis=None)
    pd.testing.assert_frame_equal(table, pd.read_csv(out / "cost.csv"), rtol=1e-4)
    found = json.loads((out / "cost.json").read_text())
    assert found["total"]["seconds"] == pytest.approx(table["seconds"].sum())
    assert (out / "cost.html").is_file()

    card = exported(small, work, out / "cost.json", tmp_path / "bundle")
    assert f"{table['joules'].sum() / 3600:.3g}" in card
    assert "electricity of DEU" in card
    assert "parameters" in card
    (out / "cost.json").write_text(json.dumps(found | {"model_sha256": "another"}))
    card = exported(small, work, out / "cost.json", tmp_path / "bundle2")
    assert "was not measured" in card


def test_a_training_that_was_broken_off_is_measured_whole(
    small: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "checkpoint" / "data"
    half, ran = work / "finetune-0.safetensors", []

    def broken(*_: object, **__: object) -> None:
        ran.append(half.exists())
        half.write_bytes(b"epoch 10 of 12")
        raise KeyboardInterrupt

    for name in ("ingest", "augment", "embed"):
        monkeypatch.setattr(cost, name, lambda *_, **__: work.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(cost, "finetune", broken)
    given = {"splits": tmp_path / "none", "key": tmp_path / "key", "checkpoint": work.parent, "out": tmp_path}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_cost_study(small, **given)
    assert ran == [False, False]


def test_a_folder_of_something_else_is_not_touched(small: Params, tmp_path: Path) -> None:
    (tmp_path / "bias.json").write_text("{}")
    given = {
        "splits": tmp_path / "none",
        "key": tmp_path / "key",
        "checkpoint": tmp_path,
        "out": tmp_path / "o",
    }
    with pytest.raises(ConfigError, match="holds something else; name a folder that does not exist"):
        run_cost_study(small, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["bias.json"]


def exported(params: Params, work: Path, path: Path, out: Path) -> str:
    gates = params.export.gates.model_copy(update={"auroc_macro": 0, "balanced_accuracy": 0})
    config = ExportConfig(gates=gates, cost=str(path))
    export(config, model=work / "calibrate", evaluation=work / "evaluate", out=out)
    return (out / "MODEL_CARD.md").read_text()


def test_a_training_takes_the_trunk_once_a_view_and_the_tail_each_epoch() -> None:
    size = Size(parameters=10, trained=4, unshared=10, multiply_adds=100, trained_multiply_adds=30)
    work = training_work(size, images=7, views=3, epochs=5)
    assert work == {"embed": 7 * 3 * 70, "finetune": 3 * 7 * 5 * 30, "whole": 3 * 7 * 5 * 100}
