import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dermtune.backbone import load_backbone
from dermtune.calibration import softmax
from dermtune.errors import ConfigError, DataError
from dermtune.params import Params
from dermtune.shards import PackedImages, open_array, places
from dermtune.stages.finetune import finetune
from dermtune.table import classes_of, read_table, write_table
from dermtune.training import Examples, predict_logits
from dermtune_bundle.decode import resize
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract


def test_it_writes_what_the_documents_say(finetuned: Path) -> None:
    assert sorted(path.name for path in finetuned.iterdir()) == [
        "history.csv",
        "learning_curves.png",
        "model.json",
        "model.onnx",
        "tails.safetensors",
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
    nn.ModuleList([tail]).load_state_dict(load_file(finetuned / "tails.safetensors"))
    contract = Contract.parse((finetuned / "model.json").read_bytes(), source="model.json")
    stored = Examples([open_array(embedded / "val.npy")], torch.zeros(len(val), dtype=torch.int64))
    logits = predict_logits(tail, stored, "cpu").double().numpy() + contract.calibration.logit_shift
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


def test_an_ensemble_with_test_views_and_folds(params: Params, larger: Path, tmp_path: Path) -> None:
    ingested = larger / "ingest"
    _run(params, tmp_path, images=ingested, activations=larger / "embed", ensemble=2, test_views=2, folds=2)
    out = tmp_path / "out"

    network = load_backbone(params.backbone)
    contract = Contract.parse((out / "model.json").read_bytes(), source="model.json")
    tails = nn.ModuleList(network.tail(len(contract.classes), dropout=0.0, seed=0) for _ in range(2))
    tails.load_state_dict(load_file(out / "tails.safetensors"))
    first, second = (next(iter(tail.parameters())) for tail in tails)
    assert not torch.equal(first, second)

    packed = PackedImages(ingested)
    place = places(read_table(ingested / "images.parquet", split="val"))[0]
    view = torch.from_numpy(resize(packed.decode(place), params.backbone.input_size)).permute(2, 0, 1)
    with torch.inference_mode():
        activations = network.trunk(torch.stack([view, view.flip(2)]).float())
        logits = torch.stack([tail.eval()(activations) for tail in tails]).mean((0, 1)).double().numpy()
    logits += contract.calibration.logit_shift
    expected = softmax(logits[None], contract.calibration.temperature)[0]
    found = Graph.open(out / "model.onnx").run(packed.decode(place)).probabilities
    assert np.abs(found - expected).max() < 0.02

    folds = pd.read_csv(out / "cross_validation.csv")
    assert list(folds["fold"]) == [0, 1]
    assert {"auroc_macro", "balanced_accuracy", "sensitivity_mel"} < set(folds)
    assert contract.lineage["cross_validation"]["of"] == "one tail, no test views"
    summary = contract.lineage["cross_validation"]["auroc_macro"]
    assert summary["mean"] == pytest.approx(folds["auroc_macro"].mean(), abs=1e-5)
    assert summary["low"] < summary["mean"] < summary["high"]


def test_more_folds_than_lesions_are_refused(params: Params, larger: Path, tmp_path: Path) -> None:
    message = r"finetune\.folds: class '\w+' has \d+ training lesions or patients, fewer than 20 folds"
    with pytest.raises(DataError, match=message):
        _run(params, tmp_path, images=larger / "ingest", activations=larger / "embed", folds=20)


def test_folds_without_unvaried_images_are_refused(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.folds: needs augment\.plain: true"):
        _run(params, tmp_path, images=ingested, activations=embedded, folds=2)


def test_rare_classes_are_named_and_probabilities_are_not_shifted(finetuned: Path, ingested: Path) -> None:
    """Decisions weigh a class by one over its frequency; probabilities undo the weights of the loss."""
    contract = Contract.parse((finetuned / "model.json").read_bytes(), source="model.json")
    counts = read_table(ingested / "images.parquet", split="train")["label"].value_counts()
    weights = [known.decision_weight for known in contract.classes]
    expected = [counts.min() / counts[known.name] for known in contract.classes]
    assert weights == pytest.approx(expected)
    shift = np.array(contract.calibration.logit_shift)
    per_class = np.array([counts[known.name] for known in contract.classes])
    assert shift - shift.max() == pytest.approx(0.5 * np.log(per_class / per_class.max()), abs=1e-5)
