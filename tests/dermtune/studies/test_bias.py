from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from dermtune.errors import ConfigError
from dermtune.params import Params
from dermtune.studies import BiasConfig, bias
from dermtune.studies.bias import run_bias_study
from dermtune.table import read_table, write_table


@pytest.fixture(scope="module")
def small(params: Params) -> Params:
    changes = {"input_size": 32, "cut": 7, "attributes": ["sex"], "repeats": 1, "epochs": 2}
    config = params.study.bias.model_copy(update=changes)
    evaluate = params.evaluate.model_copy(update={"bootstrap": 100})
    study = params.study.model_copy(update={"bias": config})
    return params.model_copy(update={"study": study, "evaluate": evaluate})


def test_all_are_judged_before_and_after_and_a_study_that_was_broken_off_goes_on(
    small: Params, ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, out, real, calls = tmp_path / "kept.json", tmp_path / "bias", bias.train_tail, []
    # what the frozen layers see is looked at once: making their graph takes longer than all else
    see = cache(lambda: looked(*arguments))
    looked, arguments = bias._see, []

    def see_once(*given: object) -> object:
        arguments[:] = given
        return see()

    monkeypatch.setattr(bias, "_see", see_once)
    found = run_bias_study(small, images=ingested, checkpoint=tmp_path / "other.json", out=out)
    table = read_table(ingested / "images.parquet")
    seen = table[table["split"] != "test"]
    sizes = pd.read_csv(out / "groups.csv")
    assert sizes["images"].sum() == len(seen), "every image of training and validation, and no other"
    whole = found[found["group"] == "all"]
    assert set(whole["mitigation"]) == {"none", "reweighting", "group_balanced", "group_dro"}
    assert whole["value"].between(0, 1).all()
    assert (whole.loc[whole["mitigation"] == "none", "change"] == 0).all()
    assert whole.loc[whole["mitigation"] != "none", "change"].abs().max() > 0
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {*written} == {"bias.csv", "groups.csv", "bias.png", "bias.html", "section.json"}

    def counted(*arguments: object, **named: object) -> object:
        calls.append(named)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(bias, "train_tail", counted)
    again = tmp_path / "again" / "bias"
    with pytest.raises(KeyboardInterrupt):
        run_bias_study(small, images=ingested, checkpoint=checkpoint, out=again)
    run_bias_study(small, images=ingested, checkpoint=checkpoint, out=again)
    assert len(calls) == 4 + (8 - 3)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == written
    assert not checkpoint.exists()


def test_a_task_without_malignant_classes_is_refused(small: Params, ingested: Path, tmp_path: Path) -> None:
    table = read_table(ingested / "images.parquet")
    for path in ingested.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "images.parquet").unlink()
    kept = table["label"].isin(["nv", "bkl", "df", "vasc"])
    table.loc[~kept, "split"] = "test"
    table["group_id"] = table["lesion_id"]
    table.loc[~kept, "label"] = "nv"
    write_table(table, tmp_path / "images.parquet")
    with pytest.raises(ConfigError, match=r"none of the classes .* are malignant"):
        run_bias_study(small, images=tmp_path, checkpoint=tmp_path / "kept.json", out=tmp_path / "bias")


def test_an_attribute_is_named_once(params: Params) -> None:
    values = params.study.bias.model_dump()
    with pytest.raises(ValueError, match="expected each attribute once"):
        BiasConfig.model_validate(values | {"attributes": ["sex", "age", "sex"]})
