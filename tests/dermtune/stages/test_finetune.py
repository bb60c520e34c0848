import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dermtune.backbone import load_backbone
from dermtune.calibration import softmax
from dermtune.errors import ConfigError, DataError
from dermtune.params import Params
from dermtune.shards import PackedImages, open_array, places
from dermtune.stages.finetune import finetune
from dermtune.table import classes_of, read_table, write_table
from dermtune.training import predict_logits
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract


def test_it_writes_what_the_documents_say(finetuned: Path) -> None:
    assert sorted(path.name for path in finetuned.iterdir()) == [
        "history.csv",
        "learning_curves.png",
        "model.json",
        "model.onnx",
        "tail.safetensors",
    ]
    with (finetuned / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]


def test_the_graph_is_trunk_and_trained_tail(
    params: Params, finetuned: Path, ingested: Path, embedded: Path
) -> None:
    """The graph, on original files, gives what the tail's weights give on stored activations, calibrated."""
    val = read_table(ingested / "images.parquet", split="val")
    names = classes_of(read_table(ingested / "images.parquet", split="train"))
    tail = load_backbone(params.backbone).tail(len(names), dropout=0.0, seed=0)
    tail.load_state_dict(load_file(finetuned / "tail.safetensors"))
    contract = Contract.parse((finetuned / "model.json").read_bytes(), source="model.json")
    logits = predict_logits(tail, open_array(embedded / "val.npy"), "cpu").double().numpy()
    expected = softmax(logits, contract.calibration.temperature)
    graph, packed = Graph.open(finetuned / "model.onnx"), PackedImages(ingested)
    found = np.array([graph.run(packed.decode(place)).probabilities for place in places(val)])
    assert [known.name for known in contract.classes] == names
    assert np.abs(found - expected).max() < 0.02  # fp16 activations, and Pillow's rounding of pixels
    clear = np.ptp(np.sort(expected)[:, -2:], axis=1) > 0.04
    assert clear.any()
    assert np.array_equal(found[clear].argmax(1), expected[clear].argmax(1))


def test_the_threshold_is_the_highest_with_the_sensitivity_asked_for(
    params: Params, finetuned: Path, ingested: Path
) -> None:
    val = read_table(ingested / "images.parquet", split="val")
    contract = Contract.parse((finetuned / "model.json").read_bytes(), source="model.json")
    (point,) = contract.operating_points
    graph, packed = Graph.open(finetuned / "model.onnx", threads=1), PackedImages(ingested)
    column = [known.name for known in contract.classes].index("mel")
    scores = np.array([graph.run(packed.decode(place)).probabilities[column] for place in places(val)])
    positive = (val["label"] == "mel").to_numpy()
    assert (scores[positive] >= point.threshold).mean() == point.sensitivity
    assert point.sensitivity >= params.finetune.target_sensitivity
    last = scores[positive & (scores >= point.threshold)].min()
    assert (scores[positive] > last).mean() < params.finetune.target_sensitivity
    assert (scores[~positive] < point.threshold).mean() == pytest.approx(point.specificity)


def test_lineage_says_what_it_was_made_from(params: Params, finetuned: Path) -> None:
    lineage = json.loads((finetuned / "model.json").read_text())["lineage"]
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


def test_a_target_that_is_no_class_is_refused(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.target: 'atypical' is no class; the classes are akiec"):
        _run(params, tmp_path, images=ingested, activations=embedded, target="atypical")


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
