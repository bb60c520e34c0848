import json
import re
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermtune.errors import ConfigError, DataError
from dermtune.params import Params
from dermtune.studies import robustness
from dermtune.studies.corruptions import CORRUPTIONS
from dermtune.studies.judges import Judges
from dermtune.studies.robustness import all_changes, read_photographs, run_robustness_study, show_artefacts


@pytest.fixture(scope="module")
def small(params: Params) -> Params:
    robustness = params.study.robustness.model_copy(
        update={"images": 14, "side": 64, "shifts": [1, 3], "angles": [5.0], "scales": [10.0]}
    )
    study = params.study.model_copy(update={"robustness": robustness})
    evaluate = params.evaluate.model_copy(update={"bootstrap": 100})
    return params.model_copy(update={"study": study, "evaluate": evaluate})


def test_a_study_that_was_broken_off_goes_on_with_the_same_result(
    small: Params, ingested: Path, finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = CORRUPTIONS[::4]
    monkeypatch.setattr(robustness, "CORRUPTIONS", some)
    judges: list[Judges] = []

    def once(*arguments: object) -> Judges:  # trained and exported for the first run, and asked by all
        judges[:] = judges or [Judges(*arguments)]  # type: ignore[arg-type]
        return judges[0]

    monkeypatch.setattr(robustness, "Judges", once)

    def run(name: str) -> dict[str, pd.DataFrame]:
        checkpoint = tmp_path / f"{name}.json"
        return run_robustness_study(
            small, images=ingested, tails=finetuned, checkpoint=checkpoint, out=tmp_path / name
        )

    whole, asked, real = run("robustness"), [], Judges.ask
    assert not (tmp_path / "robustness.json").exists()
    assert not [*tmp_path.glob("*.safetensors")]

    def stop(*arguments: object) -> object:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(arguments[2])
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Judges, "ask", stop)
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    assert asked == ["as it is", *(one.name for one in some[:2])]
    later: list[object] = []
    monkeypatch.setattr(Judges, "ask", lambda *a: later.append(a[2]) or real(*a))
    again = run("broken")
    assert later == [*(one.name for one in some[2:]), "shift", "rotation", "scale"]
    for name, table in whole.items():
        pd.testing.assert_frame_equal(table, again[name])
        written = (tmp_path / "robustness" / f"{name}.csv").read_bytes()
        assert written == (tmp_path / "broken" / f"{name}.csv").read_bytes()

    # all artefacts and movements are there, of all classifiers
    damage, moved = whole["damage"], whole["consistency"]
    assert set(damage["artefact"]) == {one.name for one in some}
    assert set(damage["classifier"]) == set(moved["classifier"]) == {"shipped", "plain", "probe"}
    assert moved.groupby("movement", sort=False)["level"].unique().map(list).to_dict() == {
        "shift": [1, 3],
        "rotation": [5],
        "scale": [10],
    }
    assert whole["severities"]["value"].dropna().between(0, 1).all()
    page = (tmp_path / "robustness" / "robustness.html").read_text()
    text = re.sub(r"base64,[^\"]*", "", page)
    assert "nan" not in text.lower()
    assert "None" not in text
    section = json.loads((tmp_path / "robustness" / "section.json").read_text())
    assert "Mean corruption error" in section["verdict"]
    assert (tmp_path / "studies.html").is_file()


def test_photographs_keep_their_shape_and_the_classes_their_balance(small: Params, ingested: Path) -> None:
    classes = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    config = small.study.robustness.model_copy(update={"images": 7})
    found = read_photographs(ingested, classes, config, seed=1)
    assert sorted(found.labels[found.rows].tolist()) == list(range(7))
    assert all(pixels.shape == (64, 85, 3) for _, pixels in found.chosen)
    assert [image_id for image_id, _ in found.chosen] == found.table["image_id"][found.rows].tolist()
    large = read_photographs(ingested, classes, config.model_copy(update={"side": 2000}), seed=1)
    assert large.read(0).shape == (225, 300, 3), "never made larger"


def test_every_change_gives_what_the_network_sees_and_a_movement_by_nothing_is_none(small: Params) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    changes = all_changes(small.study.robustness, size=32, seed=1)
    assert list(changes) == [*(one.name for one in CORRUPTIONS), "shift", "rotation", "scale"]
    seen = {
        (name, level): change("A", pixels) for name, own in changes.items() for level, change in own.items()
    }
    assert all(one.shape == (32, 32, 3) and one.dtype == np.uint8 for one in seen.values())
    np.testing.assert_array_equal(seen["rotation", 0], seen["scale", 0])
    assert (seen["shift", 0] != seen["shift", 1]).any()
    # left or right, up or down: which, chance decides for the image
    far = [changes["shift"][3](image_id, pixels) for image_id in string.ascii_letters]
    assert len({one.tobytes() for one in far}) == 4


def test_the_sheet_shows_no_patient(small: Params) -> None:
    assert len(show_artefacts(seed=small.seed).images) == 1


def test_what_does_not_belong_together_is_refused(
    small: Params, ingested: Path, finetuned: Path, tmp_path: Path
) -> None:
    far = small.study.robustness.model_copy(update={"shifts": [16]})
    study = small.study.model_copy(update={"robustness": far})
    paths = {"tails": finetuned, "checkpoint": tmp_path / "kept.json", "out": tmp_path / "out"}
    with pytest.raises(ConfigError, match=r"study\.robustness\.shifts: 16 of 64 pixels"):
        run_robustness_study(small.model_copy(update={"study": study}), images=ingested, **paths)
    other = tmp_path / "other"
    other.mkdir()
    pd.read_parquet(ingested / "images.parquet").iloc[1:].to_parquet(other / "images.parquet")
    with pytest.raises(DataError, match="re-run finetune"):
        run_robustness_study(small, images=other, **paths)
