import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermtune.errors import DataError
from dermtune.metrics import Predictions
from dermtune.params import Params
from dermtune.studies import feature_visualization, microscope
from dermtune.studies.microscope import (
    middle_malignant,
    read_followed,
    run_microscope_study,
)
from dermtune.table import read_table
from dermtune_bundle.errors import ImageError


@pytest.fixture(scope="module")
def small(params: Params) -> Params:
    chosen = {
        "images": 40,
        "patches": 3,
        "channels": 2,
        "painted": 1,
        "steps": 2,
        "picture": 32,
        "mapped": 12,
    }
    few = params.study.microscope.model_copy(update=chosen | {"neighbors": 3})
    study = params.study.model_copy(update={"microscope": few})
    evaluate = params.evaluate.model_copy(update={"bootstrap": 100})
    return params.model_copy(update={"study": study, "evaluate": evaluate})


@pytest.fixture
def inputs(ingested: Path, finetuned: Path, calibrated: Path) -> dict[str, Path]:
    return {"images": ingested, "tails": finetuned, "model": calibrated}


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_what_is_seen_is_written_and_a_study_that_was_broken_off_goes_on(
    small: Params,
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ingested = inputs["images"]

    def run(name: str) -> pd.DataFrame:
        return run_microscope_study(
            small,
            **inputs,
            image=None,
            checkpoint=tmp_path / f"{name}.json",
            out=tmp_path / name / "microscope",
        )

    table = run("whole")
    out = tmp_path / "whole" / "microscope"
    assert set(table["layer"]) == {"stem", "head", *(f"block {n}" for n in range(1, 8))}
    assert table["trained"].between(0.5, 1).all()
    assert table["auroc"].astype(float).dropna().between(0, 1).all()
    images = read_table(ingested / "images.parquet").set_index("image_id")
    spots = pd.read_csv(out / "map.csv")
    assert len(spots) == 12
    assert (images.loc[spots["image_id"], "split"] == "val").all()
    near = spots["near"].str.split(" ", expand=True)
    for column in near:
        assert (images.loc[near[column], "split"] == "train").all()
    agreement = pd.read_csv(out / "neighbors.csv")
    assert agreement["share"].between(0, 1).all()
    all_of = agreement[agreement["label"] == "all"].set_index("space")
    assert all_of["images"].to_dict() == dict.fromkeys(
        ("whole", "trained", "frozen"), (images["split"] == "val").sum()
    )
    page = (out / "microscope.html").read_text()
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^)\"]*", "", page))
    assert page.count('class="card"') == 12
    assert page.count("made to excite channel") == 8
    assert not (tmp_path / "whole.json").exists()

    done, real = [], feature_visualization.visualize

    def stop(*arguments: object, **named: object) -> object:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(feature_visualization, "visualize", stop)
        with pytest.raises(KeyboardInterrupt):
            run("broken")
    kept = json.loads((tmp_path / "broken.json").read_text())["found"]
    assert [*kept] == ["channels", "map", "pictures 1", "pictures 2", "pictures 3"]
    for name in ("measure_channels", "measure_map"):
        monkeypatch.setattr(microscope, name, None)
    run("broken")
    assert files_of(tmp_path / "broken" / "microscope") == files_of(out)


def test_the_image_that_is_followed_is_one_that_may_be_seen(ingested: Path, tmp_path: Path) -> None:
    table = read_table(ingested / "images.parquet")
    by_split = table.groupby("split")["image_id"].first()
    found = read_followed(by_split["val"], ingested)
    row = table.set_index("image_id").loc[by_split["val"]]
    assert (found.name, found.lesion, found.label) == (by_split["val"], row["lesion_id"], row["label"])
    assert found.pixels.shape == (row["height"], row["width"], 3)
    with pytest.raises(DataError, match=r"of the test split, which no study reads"):
        read_followed(by_split["test"], ingested)
    Image.new("RGB", (50, 40), (200, 10, 10)).save(tmp_path / "own.png")
    given = read_followed(str(tmp_path / "own.png"), ingested)
    assert (given.name, given.lesion, given.label) == ("own.png", "", None)
    assert given.pixels[0, 0].tolist() == [200, 10, 10]
    with pytest.raises(DataError, match=r"no such image id, and no file .*images\.parquet"):
        read_followed("nowhere.png", ingested)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match=r"text\.png"):
        read_followed(str(tmp_path / "text.png"), ingested)


def test_the_middle_of_the_malignant_is_followed() -> None:
    scores = np.array([0.9, 0.1, 0.4, 0.8, 0.99])
    labels = np.array([0, 0, 0, 1, 1])
    said = Predictions(
        ("mel", "nv"), np.c_[scores, 1 - scores], labels, labels, np.arange(5).astype(object), (True, False)
    )
    assert middle_malignant(said) == 2
    none = Predictions(
        ("df", "nv"), np.c_[scores, 1 - scores], labels, labels, np.arange(5).astype(object), (False, False)
    )
    assert 0 <= middle_malignant(none) < 5
