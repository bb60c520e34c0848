import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermtune.errors import ConfigError, DataError
from dermtune.params import Params
from dermtune.studies import attacks
from dermtune.studies.adversary import NAMED, Decision
from dermtune.studies.attacks import check_masking, curves_of, run_attacks_study, summarize
from dermtune.studies.images import Images
from dermtune.studies.trials import Outcome, Target, Trial
from dermtune.table import read_table


@pytest.fixture(scope="module")
def small(params: Params) -> Params:
    config = params.study.attacks.model_copy(
        update={"images": 8, "linf": [1, 6], "l2": [0.1, 0.5], "patch": [0.2], "steps": 3, "queries": 4}
        | {"hardening": params.study.attacks.hardening.model_copy(update={"epochs": 0})}
    )
    return params.model_copy(update={"study": params.study.model_copy(update={"attacks": config})})


@pytest.fixture(scope="module")
def folders(ingested: Path, finetuned: Path, calibrated: Path) -> dict[str, Path]:
    return {"images": ingested, "tails": finetuned, "model": calibrated}


@pytest.fixture(scope="module")
def out(small: Params, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "attacks"
    run_attacks_study(small, **folders, checkpoint=folder / "kept.json", out=folder)
    return folder


def test_what_attacks_did_is_written(ingested: Path, out: Path) -> None:
    curves = pd.read_csv(out / "attacks.csv")
    strongest = curves[curves["attack"] == "strongest"]
    assert set(strongest["decision"]) == {NAMED, "mel", "rule-out"}
    for _, one in strongest.groupby(["decision", "norm"]):
        assert (one.sort_values("eps")["value"].diff().dropna() <= 0).all()
    named = strongest[strongest["decision"] == NAMED].set_index(["norm", "eps"])["value"]
    assert named["linf", 6] < named["linf", 0]
    attacked = pd.read_csv(out / "attacked.csv")
    by_norm = attacked.groupby("norm")
    assert (by_norm.get_group("linf").eval("linf - eps") <= 0).all()
    assert (by_norm.get_group("l2").eval("l2 - eps") <= 1e-5).all()  # as many digits as the table has
    table = read_table(ingested / "images.parquet")
    assert set(table.set_index("image_id").loc[attacked["image_id"].unique(), "split"]) == {"val"}
    assert attacked["image_id"].nunique() <= 8
    checks = pd.read_csv(out / "checks.csv")
    assert len(checks) == 7
    assert not (out / "kept.json").exists()
    page = (out / "attacks.html").read_text()
    assert not re.search(r"\bnan\b|None", re.sub(r"base64,[^\"]*", "", page))
    assert "Training against it" not in page
    assert json.loads((out / "section.json").read_text())["verdict"].startswith("A change of at most 1/255")
    with Image.open(out / "pictures.png") as sheet:
        assert sheet.width > 800


def test_a_study_that_was_broken_off_goes_on_with_the_same_result(
    small: Params, folders: dict[str, Path], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, again = tmp_path / "kept.json", tmp_path / "attacks"

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(attacks, "_pictures", stop)
        with pytest.raises(KeyboardInterrupt):
            run_attacks_study(small, **folders, checkpoint=checkpoint, out=again)
    kept = json.loads(checkpoint.read_text())
    forgotten = [name for name in kept["found"] if "named pgd linf 6" in name or " square linf 6" in name]
    assert len(forgotten) == 2
    for name in forgotten:  # as if it had been stopped before these
        del kept["found"][name]
    checkpoint.write_text(json.dumps(kept))
    run_attacks_study(small, **folders, checkpoint=checkpoint, out=again)
    for name in ("attacks.csv", "attacked.csv", "checks.csv", "attacks.html"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_errors_say_what_to_do(small: Params, folders: dict[str, Path], tmp_path: Path) -> None:
    out = {"checkpoint": tmp_path / "kept.json", "out": tmp_path / "attacks"}
    config = small.study.attacks.model_copy(update={"points": ["mel", "sure"]})
    other = small.model_copy(update={"study": small.study.model_copy(update={"attacks": config})})
    with pytest.raises(ConfigError, match="no operating point sure; it has mel, rule-out, balanced, rule-in"):
        run_attacks_study(other, **folders, **out)
    with pytest.raises(DataError, match=r"model.onnx: No such file or directory; re-run calibrate"):
        run_attacks_study(small, **folders | {"model": tmp_path}, **out)
    changed = tmp_path / "calibrate"
    shutil.copytree(folders["model"], changed)
    contract = json.loads((changed / "model.json").read_text())
    contract["lineage"]["seed"] = 7
    (changed / "model.json").write_text(json.dumps(contract))
    with pytest.raises(DataError, match=r"not made of the tails of .*; re-run calibrate"):
        run_attacks_study(small, **folders | {"model": changed}, **out)
    images = tmp_path / "ingest"
    shutil.copytree(folders["images"], images)
    table = pd.read_parquet(images / "images.parquet")
    table.iloc[1:].to_parquet(images / "images.parquet", index=False)
    with pytest.raises(DataError, match=r"trained on another image table .*; re-run finetune"):
        run_attacks_study(small, **folders | {"images": images}, **out)


@pytest.fixture
def target() -> Target:
    """Four images of class 0, all right when unchanged, the last two of one lesion."""
    table = pd.DataFrame({"group_id": ["a", "b", "c", "c"], "lesion_id": ["a", "b", "c", "c"]})
    images = Images(np.zeros((4, 4, 4, 3), np.uint8), np.zeros(4, np.int64), table, ("x", "y"))
    named = Decision(NAMED, lambda probabilities: probabilities, np.zeros(4, np.int64))
    return Target(None, images, said([0.9] * 4), {NAMED: named}, {}, {NAMED: 2})  # type: ignore[arg-type]


def said(right: list[float]) -> np.ndarray:
    return np.array([[one, 1 - one] for one in right])


def found(what: str, eps: float, steps: int, fallen: list[int]) -> Outcome:
    track, attack, norm = what.split()
    trial = Trial(track, NAMED, attack, norm, eps, steps)  # type: ignore[arg-type]
    probabilities = said([0.1 if row in fallen else 0.9 for row in range(4)])
    return Outcome(trial, np.arange(4), probabilities, np.ones(4), np.ones(4))


def outcomes(*, blunt: bool) -> list[Outcome]:
    """Attacks that fell more, the more they may; or, blunt ones, less."""
    some, more, all_ = ([], [0], [0, 1]) if blunt else ([0], [0, 1], [0, 1, 2, 3])
    return [
        found("white fgsm linf", 1, 7, [1, 2] if blunt else [0]),
        found("white pgd linf", 1, 7, [] if blunt else more),
        found("black square linf", 1, 100, [0, 1, 2, 3] if blunt else []),
        found("white fgsm linf", 2, 7, more),
        found("white pgd linf", 2, 7, all_),
        found("black square linf", 2, 100, more),
        found("white fgsm l2", 0.1, 7, some),
        found("white pgd l2", 0.1, 7, some),
        found("white fgsm l2", 0.2, 7, more),
        found("white pgd l2", 0.2, 7, more),
        found("white pgd patch", 0.1, 14, more),
        found("noise noise patch", 0.1, 0, []),
        found("steps pgd l2", 0.1, 1, [0, 1, 2] if blunt else []),
        found("steps pgd l2", 0.1, 28, more),
        found("huge pgd linf", 128, 7, all_),
    ]


def test_shares_are_as_by_hand(target: Target) -> None:
    curves = summarize(target, outcomes(blunt=False), draws=200, seed=1)
    curves = curves.set_index(["norm", "attack", "eps"]).sort_index()
    values = curves["value"]
    assert values["linf", "strongest"].tolist() == [1, 0.5, 0]
    assert values["linf", "fgsm"].tolist() == [1, 0.75, 0.5]
    assert values["linf", "square"].tolist() == [1, 1, 0.5]
    assert values["patch", "strongest"].tolist() == [1, 0.5]
    assert values["patch", "noise"].tolist() == [1, 1]
    # of 0 of 3 lesions: 1 - 0.025 ** (1/3)
    assert curves["high"]["linf", "strongest", 2] == pytest.approx(1 - 0.025 ** (1 / 3))


def test_a_small_change_that_fells_an_image_counts_at_all_larger_sizes(target: Target) -> None:
    made = [found("white apgd_ce linf", 1, 7, [3]), found("white pgd linf", 2, 7, [0])]
    right = curves_of(target, made)
    assert right[NAMED, "linf", "strongest", 2].tolist() == [False, True, True, False]
    assert right[NAMED, "linf", "pgd", 2].tolist() == [False, True, True, True]


def test_sharp_attacks_pass_every_check_and_blunt_ones_are_told(target: Target) -> None:
    assert all(check.passed for check in check_masking(target, outcomes(blunt=False)))
    told = [check.name for check in check_masking(target, outcomes(blunt=True)) if not check.passed]
    assert len(told) == 4
    assert told[0].startswith("More steps")
    assert told[1] == "One step does not beat many (L∞)"
    assert told[2].startswith("Asking the graph")
    assert told[3].startswith("A change without bounds")
