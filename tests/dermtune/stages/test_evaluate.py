import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pydantic import ValidationError

from dermtune.appearance import NO_MASK
from dermtune.duplicates import make_print
from dermtune.errors import DataError
from dermtune.shards import ImagePacker
from dermtune.splits import SplitConfig
from dermtune.stages.evaluate import EvaluateConfig, evaluate, evaluate_bundle
from dermtune.stages.ingest import IngestConfig
from dermtune.table import COLUMNS, table_sha256, write_table
from dermtune_bundle.bundle import write_bundle
from dermtune_bundle.errors import ImageError
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import (
    Calibration,
    Contract,
    Diagnosis,
    InputSpec,
    Limits,
    Manifest,
    OperatingPoint,
)

CONFIG = EvaluateConfig(bootstrap=100, prevalence={"mel": 0.1})
FILES = {
    "headline.json",
    "metrics.json",
    "predictions.parquet",
    "report.html",
    *(f"{name}.csv" for name in ("confusion", "roc", "pr", "reliability")),
    *(f"{name}.csv" for name in ("prediction_sets", "subgroups", "abstention", "risk_coverage", "shortcuts")),
    "look_alikes.csv",
    *(f"{name}.png" for name in ("confusion", "roc", "pr", "reliability", "risk_coverage", "subgroups")),
}


def write_graph(path: Path) -> None:
    """A real graph that keeps the contract: the mean of red, over 255, is the probability of melanoma."""
    channels = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "places"], ["embedding"], keepdims=0),
        helper.make_node("Gather", ["embedding", "red"], ["first"], axis=1),
        helper.make_node("Div", ["first", "most"], ["melanoma"]),
        helper.make_node("Sub", ["one", "melanoma"], ["nevus"]),
        helper.make_node("Concat", ["melanoma", "nevus"], ["probabilities"], axis=1),
        helper.make_node("Log", ["probabilities"], ["logits"]),
        helper.make_node("Unsqueeze", ["probabilities", "end"], ["activation_map"]),
        helper.make_node("ReduceMax", ["probabilities", "one_axis"], ["distance"], keepdims=0),
    ]
    constants = {
        "places": np.array([1, 2]),
        "red": np.array([0]),
        "most": np.float32([255]),
        "one": np.float32([1]),
        "end": np.array([2, 3]),
        "one_axis": np.array([1]),
    }
    graph = helper.make_graph(
        channels,
        "red",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("activation_map", TensorProto.FLOAT, ["N", 2, 1, 1]),
            helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)


def write_contract(folder: Path, images: Path, classes: tuple[str, ...] = ("mel", "nv")) -> None:
    count = len(classes)
    contract = Contract(
        classes=tuple(Diagnosis(name, name.upper(), malignant=False) for name in classes),
        input=InputSpec(224, "RGB", "none"),
        quantization=None,
        calibration=Calibration("temperature", (1.0,) * count, (0.0,) * count, (0.0,) * count, 0.6, 0.5),
        coverage=0.9,
        limits=Limits(2.0, 0.0, 0.0, 255.0, 0, 0.05),
        operating_points=(OperatingPoint("mel", "mel", 0.5, "a goal", 0.9, 0.8),),
        lineage={"images_sha256": table_sha256(images)},
    )
    (folder / "model.json").write_text(contract.to_json(), encoding="utf-8")


@pytest.fixture
def model(tmp_path: Path, images: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_graph(folder / "model.onnx")
    write_contract(folder, images)
    np.save(folder / "embeddings.npy", np.float16([[-1, 0], [0, -1]]))  # unlike whatever is asked for
    return folder


REDS = {"mel": (200, 180, 60, 220), "nv": (30, 80, 150, 20)}  # one melanoma lies below 0.5, one nevus above


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four test images a class, in lesions of two, and one training image a class."""
    folder, rows, prints = tmp_path / "images", [], []
    places = [(label, "test", red) for label in REDS for red in REDS[label]]
    places += [(label, "train", 0) for label in REDS]
    with ImagePacker(folder) as packer:
        for number, (label, split, red) in enumerate(places):
            picture = tmp_path / "picture.png"
            Image.new("RGB", (40 + number, 50), (red, 7, 9)).save(picture)
            shard, offset, size = packer.add(f"{number}.png", picture.read_bytes())
            row = dict.fromkeys(COLUMNS) | {"label": label, "split": split, "width": 1, "height": 1}
            row |= {"image_id": f"image-{number}", "lesion_id": f"lesion-{number // 2}"}
            row |= {"group_id": f"lesion-{number // 2}-{split}", "source": "synthetic", "has_mask": False}
            rows.append(row | {"shard": shard, "offset": offset, "size": size})
            prints.append(make_print(np.asarray(Image.open(picture))))
    np.save(folder / "prints.npy", np.stack(prints))
    np.save(folder / "masks.npy", np.stack([NO_MASK] * len(rows)))
    pd.DataFrame({"image_id": [], "path": [], "reason": []}, dtype="string").to_parquet(
        folder / "quarantine.parquet"
    )
    write_table(pd.DataFrame(rows).infer_objects(), folder / "images.parquet")
    return folder


def test_the_graph_is_measured_on_the_test_split_alone(images: Path, model: Path, tmp_path: Path) -> None:
    evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")

    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert list(predictions) == ["image_id", "lesion_id", "label", "mel", "nv"]
    assert list(predictions["image_id"]) == [f"image-{number}" for number in range(8)]
    expected = np.array([*REDS["mel"], *REDS["nv"]]) / 255
    np.testing.assert_allclose(predictions["mel"], expected, atol=1e-6)


def test_the_metrics_are_those_computed_by_hand(images: Path, model: Path, tmp_path: Path) -> None:
    evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")

    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["n_images"], metrics["n_lesions"]) == (8, 4)
    assert metrics["sensitivity"]["mel"]["value"] == 0.75
    assert metrics["specificity"]["mel"]["value"] == 0.75
    assert metrics["balanced_accuracy"]["value"] == metrics["accuracy"]["value"] == 0.75
    assert metrics["auroc"]["macro"]["value"] == metrics["auroc"]["mel"]["value"] == 14 / 16
    assert metrics["threshold"] == {"mel": 0.5}
    assert len(metrics["model_sha256"]) == 64


def test_it_writes_the_files_that_the_formats_page_lists(images: Path, model: Path, tmp_path: Path) -> None:
    evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")

    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "image-2" in report  # the melanoma that was missed
    assert "say nothing about any patient" in report


def test_the_same_seed_writes_the_same_bytes(images: Path, model: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / name)

    for file in FILES:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes(), file


def test_an_image_that_cannot_be_read_stops_the_stage_and_is_named(
    images: Path, model: Path, tmp_path: Path
) -> None:
    tar = images / "images-000.tar"
    place = pd.read_parquet(images / "images.parquet").iloc[2]
    data = bytearray(tar.read_bytes())
    data[place["offset"] : place["offset"] + 60] = bytes(60)
    tar.write_bytes(data)

    with pytest.raises(ImageError, match="image-2"):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_a_missing_part_of_the_model_names_file_and_stage(
    name: str, images: Path, model: Path, tmp_path: Path
) -> None:
    (model / name).unlink()

    with pytest.raises(DataError, match=f"{name}.*re-run calibrate"):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")


@pytest.mark.parametrize(
    ("classes", "message"),
    [(("mel", "bcc"), "lacks: nv"), (("mel", "nv", "df"), "disagree on the classes")],
)
def test_a_model_of_other_classes_is_refused(
    classes: tuple[str, ...], message: str, images: Path, model: Path, tmp_path: Path
) -> None:
    write_contract(model, images, classes)

    with pytest.raises(DataError, match=message):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")


def test_a_damaged_graph_is_refused(images: Path, model: Path, tmp_path: Path) -> None:
    (model / "model.onnx").write_bytes(b"no graph")

    with pytest.raises(DataError, match="re-run calibrate"):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")


def test_a_model_trained_on_another_split_is_refused(images: Path, model: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(images / "images.parquet")
    write_table(table.iloc[::-1], images / "images.parquet")

    with pytest.raises(DataError, match="trained on another image table"):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")


def test_an_empty_test_split_is_refused(images: Path, model: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(images / "images.parquet")
    write_table(table[table["split"] == "train"], images / "images.parquet")
    prints = np.load(images / "prints.npy")
    np.save(images / "prints.npy", prints[(table["split"] == "train").to_numpy()])
    np.save(images / "masks.npy", np.load(images / "masks.npy")[(table["split"] == "train").to_numpy()])
    write_contract(model, images)

    with pytest.raises(DataError, match="test split is empty"):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")


def test_a_leak_stops_the_measurement(images: Path, model: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(images / "images.parquet")
    table.loc[[0, 8], "lesion_id"] = "one"
    write_table(table, images / "images.parquet")
    write_contract(model, images)

    with pytest.raises(DataError, match=r"image-0 \(test\) and image-8 \(train\) are of one lesion"):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")


@pytest.mark.parametrize("draws", [99, 0, 200.0, "many"])
def test_a_bootstrap_that_gives_no_interval_is_refused(draws: object) -> None:
    with pytest.raises(ValidationError, match="bootstrap"):
        EvaluateConfig.model_validate({"bootstrap": draws, "prevalence": {}})


def test_a_prevalence_of_no_class_is_refused() -> None:
    with pytest.raises(ValidationError, match="'malignent' is no class"):
        EvaluateConfig.model_validate({"bootstrap": 100, "prevalence": {"malignent": 0.1}})


COLORS = {"mel": (250, 10, 10), "nv": (10, 250, 10), "bcc": (10, 10, 250), "df": (200, 200, 200)}


def make_source(folder: Path, labels: list[str]) -> IngestConfig:
    """HAM10000's layout: two images a lesion, in a class's colour and with some texture."""
    (folder / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for number, label in enumerate(labels):
        pixels = rng.normal(COLORS[label], 9, (40, 50, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"images/I{number}.jpg")
        rows.append(f"L{number // 2},I{number},{label},histo,{30 + number},female,back")
    (folder / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")
    split = SplitConfig(train=0.6, val=0.2, test=0.2, assign="shares", stratify=[], official=True)
    return IngestConfig(
        source="ham10000",
        path=str(folder),
        synthetic_lesions=40,
        parts={},
        columns={},
        classes="as_labelled",
        label_map={},
        unmapped="error",
        licenses=[],
        max_quarantine=0.1,
        split=split,
    )


def test_a_bundle_is_measured_on_all_images_of_another_source(tiny_bundle: Path, tmp_path: Path) -> None:
    """The bundle knows three classes, the source has two of them."""
    source = make_source(tmp_path / "source", ["mel"] * 6 + ["nv"] * 8 + ["nv"])
    (tmp_path / "source/images/I14.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    evaluate_bundle(CONFIG, source=source, seed=1, bundle=tiny_bundle, out=out)
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["n_images"], metrics["n_lesions"]) == (14, 7)
    assert metrics["auroc"]["mel"]["value"] == 1
    assert metrics["auroc"]["bcc"]["value"] is None
    assert metrics["balanced_accuracy"]["value"] == 1
    assert metrics["undefined"]["auroc"]["classes"] == 1
    assert {path.name for path in out.iterdir()} == FILES
    report = " ".join((out / "report.html").read_text().split())
    assert "this is an external validation" in report
    assert "this is no external validation" not in report
    assert "1 files were set aside" in report
    assert "not a JPEG" in report
    assert metrics["is_external"]


def test_a_bundle_is_not_measured_on_the_source_that_it_was_trained_on(
    tiny_bundle: Path, tmp_path: Path, tiny_manifest: Manifest
) -> None:
    model = (tiny_bundle / "model.onnx").read_bytes()
    trained = replace(tiny_manifest, lineage={"source": "ham10000"})
    write_bundle(tmp_path / "trained", model=model, manifest=trained, card="# Card")
    source = make_source(tmp_path / "source", ["mel"] * 6 + ["nv"] * 8)
    with pytest.raises(DataError, match="trained on images of ham10000"):
        evaluate_bundle(CONFIG, source=source, seed=1, bundle=tmp_path / "trained", out=tmp_path / "out")


def test_labels_of_another_source_must_be_the_bundles(tiny_bundle: Path, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", ["mel"] * 4 + ["df"] * 4)
    with pytest.raises(DataError, match=r"has classes that the model lacks: df; map labels"):
        evaluate_bundle(CONFIG, source=source, seed=1, bundle=tiny_bundle, out=tmp_path / "out")
    mapped = source.model_copy(update={"label_map": {"df": "nv"}})
    evaluate_bundle(CONFIG, source=mapped, seed=1, bundle=tiny_bundle, out=tmp_path / "out")


def test_a_test_image_that_looks_like_a_training_one_is_listed_and_a_copy_refused(
    images: Path, model: Path, tmp_path: Path
) -> None:
    """Though prints and lesions tell nothing: a crop, by what the frozen layers see."""
    table = pd.read_parquet(images / "images.parquet")
    prints = np.random.default_rng(0).integers(0, 256, (10, 48, 48), dtype=np.uint8)
    prints[8] = (0.7 * prints[0] + 0.3 * prints[1]).astype(np.uint8)  # correlates with the first by 0.92
    np.save(images / "prints.npy", prints)
    graph = Graph.open(model / "model.onnx")
    seen = graph.run(np.full((50, 40, 3), (200, 7, 9), np.uint8)).embedding[-2:]
    unit = seen / np.linalg.norm(seen)
    near = np.array([unit[0] - 0.15 * unit[1], unit[1] + 0.15 * unit[0]])
    for angle, refused in ((near / np.linalg.norm(near), False), (unit, True)):
        np.save(model / "embeddings.npy", np.float16([angle, [0, -1]]))
        if refused:
            with pytest.raises(DataError, match=r"image-0 \(test\) and image-8.* show one photograph"):
                evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")
        else:
            evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")
            listed = pd.read_csv(tmp_path / "out/look_alikes.csv")
            assert ("image-0", "image-8") in zip(listed["test"], listed["other"], strict=True)
    assert len(table) == 10


def test_embeddings_of_other_images_are_refused(images: Path, model: Path, tmp_path: Path) -> None:
    np.save(model / "embeddings.npy", np.ones((3, 2), np.float16))
    with pytest.raises(DataError, match="of other images than those of the image table"):
        evaluate(CONFIG, seed=3, images=images, model=model, out=tmp_path / "out")
