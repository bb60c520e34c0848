import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dermtune.errors import ConfigError, DataError
from dermtune.params import Params
from dermtune.stages.finetune import finetune
from dermtune.table import read_table, write_table
from dermtune.tails import read_tails


def test_it_writes_what_the_documents_say(finetuned: Path) -> None:
    assert sorted(path.name for path in finetuned.iterdir()) == [
        "history.csv",
        "learning_curves.png",
        "lineage.json",
        "tails.safetensors",
    ]
    with (finetuned / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_lineage_says_what_it_was_made_from(params: Params, finetuned: Path) -> None:
    lineage = json.loads((finetuned / "lineage.json").read_text())
    assert lineage["backbone"]["cut"] == params.backbone.cut
    assert lineage["source"] == "synthetic"
    assert set(lineage["images"]) == {"train", "val"}
    assert torch.__version__.startswith(lineage["versions"]["torch"])


def test_the_same_run_gives_the_same_bytes(
    params: Params, finetuned: Path, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    _run(params, tmp_path, images=ingested, activations=embedded)
    for path in finetuned.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name


def _run(params: Params, tmp_path: Path, *, images: Path, activations: Path, **changes: object) -> None:
    finetune(
        params.finetune.model_copy(update=changes),
        backbone=params.backbone,
        seed=params.seed,
        images=images,
        activations=activations,
        out=tmp_path / "out",
        checkpoint=tmp_path / "checkpoint.safetensors",
    )


def test_activations_of_another_cut_are_refused(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    other = params.model_copy(update={"backbone": params.backbone.model_copy(update={"cut": 4})})
    with pytest.raises(DataError, match=r"cut: stored 5, now 4.*re-run embed"):
        _run(other, tmp_path, images=ingested, activations=embedded)


def test_activations_of_another_split_are_refused(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    """As many images, in another order: labels would be shuffled, test lesions trained on."""
    table = read_table(ingested / "images.parquet")
    write_table(table.iloc[::-1], tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"images_sha256: stored .* re-run embed"):
        _run(params, tmp_path, images=tmp_path, activations=embedded)


def test_activations_of_fewer_images_are_refused(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    fewer = tmp_path / "embed"
    shutil.copytree(embedded, fewer)
    np.save(fewer / "train-01.npy", np.load(fewer / "train-01.npy")[:-1])
    with pytest.raises(DataError, match=r"train-01\.npy: \d+ rows for \d+ images of the table"):
        _run(params, tmp_path, images=ingested, activations=fewer)


def test_more_folds_than_lesions_are_refused(params: Params, larger: Path, tmp_path: Path) -> None:
    message = r"finetune\.folds: class '\w+' has \d+ training lesions or patients, fewer than 20 folds"
    with pytest.raises(DataError, match=message):
        _run(params, tmp_path, images=larger / "ingest", activations=larger / "embed", folds=20)


def test_folds_without_unvaried_images_are_refused(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.folds: needs augment\.plain: true"):
        _run(params, tmp_path, images=ingested, activations=embedded, folds=2)


@pytest.mark.parametrize("mitigation", ["none", "group_dro"])
def test_an_ensemble_with_folds(params: Params, larger: Path, tmp_path: Path, mitigation: str) -> None:
    changes = {"ensemble": 2, "folds": 2, "mitigation": mitigation}
    _run(params, tmp_path, images=larger / "ingest", activations=larger / "embed", **changes)
    out = tmp_path / "out"
    tails = read_tails(out, backbone=params.backbone).tails
    first, second = (next(iter(tail.parameters())) for tail in tails)
    assert not torch.equal(first, second)

    folds = pd.read_csv(out / "cross_validation.csv")
    assert list(folds["fold"]) == [0, 1]
    assert {"auroc_macro", "auroc_malignant", "balanced_accuracy", "brier"} < set(folds)
    found = json.loads((out / "lineage.json").read_text())["cross_validation"]
    assert found["of"] == "one tail, no test views"
    summary = found["auroc_macro"]
    assert summary["mean"] == pytest.approx(folds["auroc_macro"].mean(), abs=1e-5)
    assert summary["low"] < summary["mean"] < summary["high"]


@pytest.mark.parametrize("mitigation", ["reweighting", "group_balanced", "group_dro"])
def test_a_mitigation_trains_another_tail_and_is_told(
    params: Params, finetuned: Path, ingested: Path, embedded: Path, tmp_path: Path, *, mitigation: str
) -> None:
    changes = {"mitigation": mitigation, "groups": "sex", "group_step": 0.5}
    _run(params, tmp_path, images=ingested, activations=embedded, **changes)
    out = tmp_path / "out"
    lineage = json.loads((out / "lineage.json").read_text())
    assert lineage["finetune"]["mitigation"] == mitigation
    assert sum(lineage["groups"].values()) == sum(lineage["images"]["train"].values())
    assert (out / "tails.safetensors").read_bytes() != (finetuned / "tails.safetensors").read_bytes()
    # what weighs classes is as it was: their frequencies, by which probabilities are put right
    plain = read_tails(finetuned, backbone=params.backbone)
    np.testing.assert_array_equal(read_tails(out, backbone=params.backbone).frequencies, plain.frequencies)
