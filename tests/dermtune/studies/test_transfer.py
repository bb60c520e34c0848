import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from dermtune.params import Params
from dermtune.studies import TransferConfig, transfer
from dermtune.studies.networks import NAMES
from dermtune.studies.transfer import run_transfer_study, share_of_lesions, summarize


@pytest.fixture(scope="module")
def small(params: Params) -> Params:
    transfer = params.study.transfer.model_copy(
        update={"input_size": 32, "shares": [0.5, 1.0], "seeds": 2, "epochs": 2}
    )
    return params.model_copy(update={"study": params.study.model_copy(update={"transfer": transfer})})


def test_eight_networks_learn_and_what_they_learn_is_written(
    small: Params, ingested: Path, tmp_path: Path
) -> None:
    checkpoint, out = tmp_path / "kept.json", tmp_path / "transfer"
    curves = run_transfer_study(small, images=ingested, checkpoint=checkpoint, out=out)
    assert tuple(curves["network"].unique()) == NAMES
    assert len(curves) == 8 * 2 * 3
    assert (curves["low"] <= curves["value"]).all()
    assert (curves["value"] <= curves["high"]).all()
    history = pd.read_csv(out / "history.csv")
    assert history["val_auroc"].between(0, 1).all()
    assert (history[["seconds", "joules"]] > 0).all(axis=None)
    epochs = history.groupby(["network", "share", "seed"]).size().groupby("share").unique()
    assert {share: found.tolist() for share, found in epochs.items()} == {0.5: [3], 1.0: [2]}
    assert len(pd.read_csv(out / "networks.csv")) == 8
    assert not checkpoint.exists()
    page = (out / "transfer.html").read_text()
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)
    assert page.count("<tr>") == 3 + 3 * 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shares": [0.5, 0.2, 1.0]}, "expected rising shares, the last one 1"),
        ({"shares": [0.2, 0.5]}, "expected rising shares, the last one 1"),
        ({"lr": {"linear": 0.1}}, "lr: none of fully_connected, cnn"),
        ({"lr": {"linaer": 0.1}}, "linaer"),
    ],
)
def test_choices_that_cannot_be_measured_are_refused_at_once(
    params: Params, wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        TransferConfig(**params.study.transfer.model_dump() | wrong)


def test_a_study_that_was_broken_off_goes_on_with_the_same_result(
    small: Params, ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def columns(out: Path) -> pd.DataFrame:
        return pd.read_csv(out / "history.csv").drop(columns=["seconds", "joules"])

    few = [network for network in NAMES if network in {"linear", "fully_connected"}]
    made = transfer.make_networks
    monkeypatch.setattr(
        transfer, "make_networks", lambda *a, **k: [one for one in made(*a, **k) if one.name in few]
    )
    for name in ("render_transfer", "transfer_curves", "verdict_on", "write_study"):
        monkeypatch.setattr(transfer, name, lambda *_, **__: "")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_transfer_study(small, images=ingested, checkpoint=tmp_path / "a.json", out=whole)

    real, done = transfer.train_tail, []

    def stop(*arguments: object, **named: object) -> object:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "train_tail", stop)
        with pytest.raises(KeyboardInterrupt):
            run_transfer_study(small, images=ingested, checkpoint=tmp_path / "b.json", out=broken)
    calls = []
    monkeypatch.setattr(transfer, "train_tail", lambda *a, **k: calls.append(1) or real(*a, **k))
    run_transfer_study(small, images=ingested, checkpoint=tmp_path / "b.json", out=broken)
    assert len(calls) == 8 - 5
    pd.testing.assert_frame_equal(columns(broken), columns(whole))


def test_a_larger_share_holds_the_lesions_of_a_smaller_one_and_every_class() -> None:
    lesions = np.array([f"L{row // 2}" for row in range(200)], object)
    labels = np.repeat([0, 1, 2], [150, 46, 4])
    parts = [share_of_lesions(lesions, labels, share, seed=1) for share in (0.1, 0.5, 1.0)]
    assert [len(part) for part in parts] == [2 * (8 + 2 + 1), 2 * (38 + 12 + 1), 200]
    assert set(parts[0]) < set(parts[1]) < set(parts[2])
    assert set(labels[parts[0]]) == {0, 1, 2}
    whole = {lesions[row] for row in parts[1]}
    assert {row for row in range(200) if lesions[row] in whole} == set(parts[1])


def test_start_slope_and_asymptote_are_as_by_hand() -> None:
    rows = [
        {"network": "linear", "share": share, "seed": seed, "epoch": epoch, "val_auroc": area}
        for seed in (0, 1)
        for share, areas in {
            0.25: [0.5] * 5 + [0.55],
            0.5: [0.6],
            1.0: [0.5, 0.6, 0.7, 0.7, 0.7, 0.65, 0.61 + 0.04 * seed, 0.65],
        }.items()
        for epoch, area in enumerate(areas)
    ]
    found = summarize(pd.DataFrame(rows)).set_index(["curve", "measure"])
    assert found["value"]["epochs", "start"] == pytest.approx(0.5)
    assert found["value"]["epochs", "slope"] == pytest.approx(0.1)
    assert found["value"]["epochs", "asymptote"] == pytest.approx(0.64)
    assert found["low"]["epochs", "asymptote"] == pytest.approx(0.64 - 12.706 * 0.01, abs=1e-4)
    assert found["value"]["lesions", "start"] == pytest.approx(0.55)
    assert found["value"]["lesions", "slope"] == pytest.approx(0.05)
    assert found["value"]["lesions", "asymptote"] == pytest.approx(0.65)
