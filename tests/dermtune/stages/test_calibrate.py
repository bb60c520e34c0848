import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dermtune.backbone import load_backbone
from dermtune.calibration import prior_shift, softmax
from dermtune.errors import ConfigError, DataError
from dermtune.goals import Goal
from dermtune.inference import Looked, look_at_images
from dermtune.params import Params
from dermtune.shards import PackedImages, open_array, places
from dermtune.stages.calibrate import calibrate
from dermtune.table import classes_of, read_table, write_table
from dermtune.tails import read_tails
from dermtune.training import Examples, predict_logits
from dermtune_bundle.cases import Cases
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract


def contract_of(folder: Path) -> Contract:
    return Contract.parse((folder / "model.json").read_bytes(), source="model.json")


def look(folder: Path, images: Path) -> Looked:
    """At the validation images, through the graph."""
    table = read_table(images / "images.parquet", split="val")
    graph = Graph.open(folder / "model.onnx", threads=1)
    return look_at_images(graph, PackedImages(images), places(table), description="test")


def run(params: Params, images: Path, tails: Path, out: Path, **changes: object) -> Path:
    config = params.calibrate.model_copy(update=changes)
    calibrate(config, backbone=params.backbone, images=images, tails=tails, out=out)
    return out


def test_it_writes_the_graph_and_its_contract(calibrated: Path) -> None:
    assert sorted(path.name for path in calibrated.iterdir()) == [
        "embeddings.npy",
        "model.json",
        "model.onnx",
    ]
    lineage = contract_of(calibrated).lineage
    assert lineage["calibrate"]["operating_points"]["rule-out"]["sensitivity"] == 0.95
    assert lineage["finetune"]["epochs"] == 2


def test_embeddings_are_of_all_images_but_the_test_ones_in_the_tables_order(
    calibrated: Path, ingested: Path
) -> None:
    table = read_table(ingested / "images.parquet")
    others = table[table["split"] != "test"].reset_index(drop=True)
    known = open_array(calibrated / "embeddings.npy", rows=len(others)).astype(np.float32)
    graph, packed = Graph.open(calibrated / "model.onnx", threads=1), PackedImages(ingested)
    for row in (0, len(others) // 2, len(others) - 1):
        embedding = graph.run(packed.decode(places(others)[row])).embedding[-known.shape[1] :]
        assert np.allclose(known[row], embedding / np.linalg.norm(embedding), atol=2e-3)


def test_the_graph_is_trunk_and_trained_tail(
    params: Params, finetuned: Path, calibrated: Path, ingested: Path, embedded: Path
) -> None:
    """The graph, on original files, gives what the tail's weights give on stored activations, calibrated."""
    val = read_table(ingested / "images.parquet", split="val")
    names = classes_of(read_table(ingested / "images.parquet", split="train"))
    (tail,) = read_tails(finetuned, backbone=params.backbone).tails
    contract = contract_of(calibrated)
    stored = Examples([open_array(embedded / "val.npy")], torch.zeros(len(val), dtype=torch.int64))
    logits = predict_logits(tail, stored, "cpu").double().numpy()
    expected = softmax(logits * contract.calibration.logit_scale + contract.calibration.logit_shift)
    found = look(calibrated, ingested).probabilities
    assert [known.name for known in contract.classes] == names
    assert np.abs(found - expected).max() < 0.02  # fp16 activations, and Pillow's rounding of pixels
    clear = np.ptp(np.sort(expected)[:, -2:], axis=1) > 0.04
    assert clear.any()
    assert np.array_equal(found[clear].argmax(1), expected[clear].argmax(1))


def test_thresholds_give_on_validation_what_they_were_chosen_for(calibrated: Path, ingested: Path) -> None:
    val = read_table(ingested / "images.parquet", split="val")
    contract = contract_of(calibrated)
    points = {point.name: point for point in contract.operating_points}
    probabilities = look(calibrated, ingested).probabilities
    names = [known.name for known in contract.classes]
    dangerous = [known.malignant for known in contract.classes]
    scores = {"mel": probabilities[:, names.index("mel")], "malignant": probabilities[:, dangerous].sum(1)}
    truth = {
        "mel": (val["label"] == "mel").to_numpy(),
        "malignant": val["label"].isin(np.array(names)[dangerous]).to_numpy(),
    }
    assert set(points) == {"mel", "rule-out", "balanced", "rule-in"}
    for point in points.values():
        score, positive = scores[point.target], truth[point.target]
        assert (score[positive] >= point.threshold).mean() == pytest.approx(point.sensitivity)
        assert (score[~positive] < point.threshold).mean() == pytest.approx(point.specificity)
    assert points["mel"].sensitivity >= 0.90
    assert points["rule-out"].sensitivity >= 0.95
    assert points["rule-in"].specificity >= 0.95
    assert points["rule-out"].threshold <= points["balanced"].threshold <= points["rule-in"].threshold


def test_few_of_the_images_that_it_was_calibrated_on_are_flagged(calibrated: Path, ingested: Path) -> None:
    seen, limits = look(calibrated, ingested), contract_of(calibrated).limits
    pairs = zip(seen.distances, seen.qualities, strict=True)
    flagged = np.mean([bool(limits.reasons(distance, quality)) for distance, quality in pairs])
    assert flagged <= 3 / len(seen.qualities), "one for each limit of quality: there are few images"
    assert 0 < limits.distance < 2


def test_rare_classes_are_named_and_probabilities_are_not_shifted(
    params: Params, calibrated: Path, ingested: Path
) -> None:
    """Decisions weigh a class by one over its frequency; probabilities undo the weights of the loss."""
    contract = contract_of(calibrated)
    counts = read_table(ingested / "images.parquet", split="train")["label"].value_counts()
    weights = [known.decision_weight for known in contract.classes]
    assert weights == pytest.approx([counts.min() / counts[known.name] for known in contract.classes])
    per_class = np.array([counts[known.name] for known in contract.classes])
    shift = prior_shift(per_class / per_class.sum(), params.finetune.class_balance)
    scale = np.array(contract.calibration.logit_scale)
    assert np.ptp(scale) == 0, "one temperature"
    assert contract.calibration.logit_shift == pytest.approx(shift * scale)
    assert contract.calibration.prior_shift == pytest.approx(shift)


@pytest.mark.parametrize("method", [pytest.param("vector", marks=pytest.mark.slow), "isotonic"])
def test_other_methods_calibrate_the_same_tails(  # noqa: PLR0917 (fixtures)
    params: Params, finetuned: Path, calibrated: Path, ingested: Path, tmp_path: Path, method: str
) -> None:
    out = run(params, ingested, finetuned, tmp_path, method=method)
    found, before = look(out, ingested), look(calibrated, ingested)
    assert contract_of(out).calibration.method == method
    assert contract_of(out).calibration.nll_after < contract_of(out).calibration.nll_before
    assert found.probabilities.sum(1) == pytest.approx(1)
    assert np.abs(found.probabilities - before.probabilities).max() > 0.01
    assert found.embeddings == pytest.approx(before.embeddings), "only what comes after is another"


def test_test_views_are_averaged(
    params: Params, finetuned: Path, calibrated: Path, ingested: Path, tmp_path: Path
) -> None:
    out = run(params, ingested, finetuned, tmp_path, test_views=2)
    network = load_backbone(params.backbone)
    (tail,) = read_tails(finetuned, backbone=params.backbone).tails
    place = places(read_table(ingested / "images.parquet", split="val"))[0]
    image = PackedImages(ingested).decode(place)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    size = [params.backbone.input_size] * 2
    view = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    with torch.inference_mode():
        logits = tail(network.trunk(torch.cat([view, view.flip(3)]))).mean(0).double().numpy()
    calibration = contract_of(out).calibration
    expected = softmax((logits * calibration.logit_scale + calibration.logit_shift)[None])[0]
    found = Graph.open(out / "model.onnx").run(image).probabilities
    assert found == pytest.approx(expected, abs=1e-4)
    assert np.abs(found - Graph.open(calibrated / "model.onnx").run(image).probabilities).max() > 1e-4


def test_the_same_run_gives_the_same_bytes(
    params: Params, finetuned: Path, calibrated: Path, ingested: Path, tmp_path: Path
) -> None:
    run(params, ingested, finetuned, tmp_path)
    for path in calibrated.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_target_that_is_no_class_is_refused(
    params: Params, finetuned: Path, ingested: Path, tmp_path: Path
) -> None:
    goals = {"one": Goal(target="atypical")}
    with pytest.raises(ConfigError, match=r"points\.one\.target: 'atypical' is no class; the classes are"):
        run(params, ingested, finetuned, tmp_path, operating_points=goals)


def test_tails_of_another_split_are_refused(
    params: Params, finetuned: Path, ingested: Path, tmp_path: Path
) -> None:
    table = read_table(ingested / "images.parquet")
    write_table(table.iloc[::-1], tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"trained on another image table .*; re-run finetune"):
        run(params, tmp_path, finetuned, tmp_path / "out")


def test_tails_behind_another_trunk_or_damaged_ones_are_refused(
    params: Params, finetuned: Path, ingested: Path, tmp_path: Path
) -> None:
    other = params.model_copy(update={"backbone": params.backbone.model_copy(update={"cut": 4})})
    with pytest.raises(DataError, match="behind another trunk than that of backbone; re-run finetune"):
        run(other, ingested, finetuned, tmp_path / "out")
    shutil.copytree(finetuned, tmp_path / "broken")
    (tmp_path / "broken/tails.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DataError, match="no trained tails, or damaged ones; re-run finetune"):
        run(params, ingested, tmp_path / "broken", tmp_path / "out")
    lineage = json.loads((finetuned / "lineage.json").read_text())
    lineage["images"]["train"]["atypical"] = 3
    shutil.copytree(finetuned, tmp_path / "unlike")
    (tmp_path / "unlike/lineage.json").write_text(json.dumps(lineage))
    with pytest.raises(DataError, match="not of this backbone's tail; re-run finetune"):
        run(params, ingested, tmp_path / "unlike", tmp_path / "out")


def test_int8_is_calibrated_by_itself_and_its_loss_told(
    params: Params, ingested: Path, finetuned: Path, calibrated: Path, tmp_path: Path
) -> None:
    out = run(params, ingested, finetuned, tmp_path, precision="int8")
    sizes = [(folder / "model.onnx").stat().st_size for folder in (calibrated, out)]
    assert sizes[1] < 0.6 * sizes[0]
    exact, rounded = look(calibrated, ingested), look(out, ingested)
    apart = np.abs(exact.probabilities - rounded.probabilities)
    loss = contract_of(out).quantization
    assert loss is not None
    assert loss.largest_difference == pytest.approx(apart.max(), abs=1e-5)
    assert 0 < loss.mean_difference == pytest.approx(apart.mean(), abs=1e-5)
    assert loss.auroc_after is not None
    assert loss.auroc_before is not None
    assert abs(loss.auroc_after - loss.auroc_before) < 0.1
    table = read_table(ingested / "images.parquet", split="val")
    own = contract_of(out)
    assert own.calibration.logit_scale != contract_of(calibrated).calibration.logit_scale
    flagged = rounded.distances > own.limits.distance
    assert flagged.sum() <= 0.05 * len(table), "its limits are its own"
    assert contract_of(calibrated).quantization is None


def test_training_cases_are_written_where_params_allow_and_taken_back_where_not(
    params: Params, ingested: Path, finetuned: Path, tmp_path: Path
) -> None:
    train = read_table(ingested / "images.parquet", split="train")
    out = run(params, ingested, finetuned, tmp_path, similar_cases="thumbnails")
    names = [known.name for known in contract_of(out).classes]
    cases = Cases.from_files({path.name: path.read_bytes() for path in out.iterdir()}, names, source="x")
    assert cases is not None
    assert len(cases.labels) == train["lesion_id"].nunique()
    row = train.reset_index(drop=True).iloc[[0]]
    seen = Graph.open(out / "model.onnx").run(PackedImages(ingested).decode(places(row)[0]))
    (nearest, *_) = cases.nearest(seen.embedding)
    assert nearest.similarity > 0.999
    assert (nearest.label, nearest.image_id) == (row["label"].iloc[0], row["image_id"].iloc[0])
    assert nearest.thumbnail is not None
    run(params, ingested, finetuned, tmp_path)
    assert not (out / "cases.npy").exists()
