import json
import re
import shutil
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pytest

from dermtune.appearance import NO_MASK
from dermtune.errors import DataError
from dermtune.params import Params
from dermtune.shards import PackedImages, places
from dermtune.studies import where
from dermtune.studies.localisation import MEASURES, METHODS
from dermtune.studies.where import run_where_study
from dermtune.table import read_table
from dermtune_bundle.graph import Graph


@pytest.fixture(scope="module")
def small(params: Params) -> Params:
    config = params.study.where.model_copy(update={"images": 12, "occluded": 5, "window": 0.5})
    evaluate = params.evaluate.model_copy(update={"bootstrap": 200})
    study = params.study.model_copy(update={"where": config})
    return params.model_copy(update={"study": study, "evaluate": evaluate})


class Run(Protocol):
    def __call__(
        self, folder: Path, *, images: Path = ..., model: Path = ..., tails: Path = ...
    ) -> pd.DataFrame: ...


@pytest.fixture(scope="module")
def run(small: Params, ingested: Path, calibrated: Path, finetuned: Path) -> Run:
    def run(
        folder: Path, *, images: Path = ingested, model: Path = calibrated, tails: Path = finetuned
    ) -> pd.DataFrame:
        kept, out = folder / "kept.json", folder / "where"
        return run_where_study(small, images=images, model=model, tails=tails, checkpoint=kept, out=out)

    return run


@pytest.fixture(scope="module")
def studied(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("where")
    run(folder)
    return folder


def test_every_method_is_measured_and_written(studied: Path) -> None:
    assert not (studied / "kept.json").exists()
    table = pd.read_csv(studied / "where" / "where.csv")
    assert [*dict.fromkeys(table["method"])] == [*METHODS]
    assert len(table) == len(METHODS) * len(MEASURES)
    assert table["value"].dropna().between(0, 1).all()
    assert (table["value"].isna() == (table["images"] == 0)).all()
    assert (table["images"][table["method"] == "occlusion"] <= 5).all()
    assert (table["images"][table["method"] == "best"] == 12).all()
    overlap = table[table["measure"] == "overlap"].set_index("method")["value"]
    assert overlap["best"] > overlap["shown"], "of maps with as many cells"
    assert len(pd.read_csv(studied / "where" / "overlap.csv")) == 19
    page = (studied / "where" / "where.html").read_text()
    assert "n = 12 validation images" in page
    assert "the classes as equally often as they can be" in page
    text = re.sub(r"base64,[^\"]*", "", page)
    assert "nan" not in text
    assert "None" not in text
    assert "<script" not in text
    assert text.count("<img") >= 2
    assert (studied / "studies.html").is_file()


def test_validation_images_alone_are_looked_at(studied: Path, ingested: Path) -> None:
    seen = pd.read_csv(studied / "where" / "agreement.csv")
    table = read_table(ingested / "images.parquet").set_index("image_id")
    assert len(seen) == 5
    assert set(table.loc[seen["image_id"], "split"]) == {"val"}
    assert seen["label"].tolist() == table.loc[seen["image_id"], "label"].tolist()


def test_the_map_that_is_shown_is_the_graphs_and_grad_cam_is_nearly_that(
    small: Params, ingested: Path, calibrated: Path, finetuned: Path
) -> None:
    folders = {"images": ingested, "tails": finetuned, "model": calibrated}
    trained, graph, contract = where.read_both(small.backbone, **folders)
    network = where.Network(graph, contract, trained, small)
    graph = Graph.open(calibrated / "model.onnx")
    packed = PackedImages(ingested)
    for place in places(read_table(ingested / "images.parquet", split="val"))[:3]:
        image = packed.decode(place)
        looked = network.look(image)
        output = graph.run(image)
        np.testing.assert_array_equal(looked.maps["shown"], output.activation_map[looked.named])
        np.testing.assert_allclose(looked.maps["grad_cam"], looked.maps["shown"], atol=0.02)
        assert looked.maps["finer"].shape == (4, 4)
        assert looked.maps["untrained 0"].shape == looked.maps["shown"].shape == (2, 2)
        assert not np.allclose(looked.maps["untrained 0"], looked.maps["untrained 1"])
        assert network.occlude(image, looked.named).shape == (4, 4)


def test_a_study_that_was_broken_off_goes_on_with_the_same_result(
    run: Run, studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = where.occlusion, []

    def stop(*arguments: object, **named: object) -> object:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return real(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(where, "occlusion", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    assert not (tmp_path / "where").exists(), "nothing is half-written"
    monkeypatch.setattr(where, "grad_cam", lambda *_: pytest.fail("these maps were kept"))
    monkeypatch.setattr(where, "occlusion", lambda *a, **k: calls.append(1) or real(*a, **k))
    run(tmp_path)
    assert len(calls) == 5
    for name in ("where", "groups", "overlap", "agreement"):
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / "where" / f"{name}.csv"), pd.read_csv(studied / "where" / f"{name}.csv")
        )


def outlined(ingested: Path, folder: Path, *, splits: tuple[str, ...]) -> Path:
    """The same images, of which those of some splits alone have an outline."""
    images = folder / "ingest"
    shutil.copytree(ingested, images)
    table = read_table(images / "images.parquet")
    table["has_mask"] = table["split"].isin(splits)
    table.to_parquet(images / "images.parquet", index=False)
    return images


@pytest.mark.parametrize("missing", ["train", "val"])
def test_without_outlines_it_says_so_and_writes_nothing(
    missing: str, run: Run, ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = outlined(ingested, tmp_path, splits=("val",) if missing == "train" else ("train",))
    with pytest.raises(DataError, match=r"trained on another image table .*; re-run finetune"):
        run(tmp_path, images=images)
    real = where.read_both
    monkeypatch.setattr(where, "read_both", lambda *a, **k: real(*a, **k | {"images": ingested}))
    with pytest.raises(DataError, match=f"no lesion of the {missing} images is outlined"):
        run(tmp_path, images=images)
    assert not (tmp_path / "where").exists()


def test_an_outline_of_nothing_is_none(ingested: Path, tmp_path: Path) -> None:
    images = tmp_path / "ingest"
    shutil.copytree(ingested, images)
    masks = np.load(images / "masks.npy")
    table = read_table(images / "images.parquet")
    rows = np.flatnonzero(table["split"] == "val")[:4]
    masks[rows] = NO_MASK
    np.save(images / "masks.npy", masks)
    judged, _ = where.read_outlines(images, 1000, seed=1)
    assert judged.left_out == 4
    assert judged.outlined == len(judged.table)
    assert len(judged.table) == (table["split"] == "val").sum() - 4
    assert not set(table["image_id"].iloc[rows]) & set(judged.table["image_id"])


def test_a_missing_model_is_one_line(run: Run, calibrated: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"re-run calibrate"):
        run(tmp_path, model=tmp_path / "none")
    with pytest.raises(DataError, match=r"re-run finetune"):
        run(tmp_path, tails=tmp_path / "none")
    model = tmp_path / "calibrate"
    shutil.copytree(calibrated, model)
    contract = json.loads((model / "model.json").read_text())
    contract["lineage"]["images_sha256"] = "0" * 64
    (model / "model.json").write_text(json.dumps(contract))
    with pytest.raises(DataError, match=r"not made of the tails of .*; re-run calibrate"):
        run(tmp_path, model=model)
