import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from dermtune import training
from dermtune.backbone import Tail
from dermtune.errors import DataError
from dermtune.params import Params
from dermtune.search_space import Number
from dermtune.stages.search import SearchConfig, search
from dermtune.table import read_table
from dermtune.training import Examples

SPACE = {"lr": {"low": 0.0001, "high": 0.05, "log": True}, "dropout": {"choices": [0.0, 0.5]}}


def config(**changes: object) -> SearchConfig:
    values = {"trials": 4, "sampler": "tpe", "part": 2, "epochs": 2, "space": SPACE, "side_by_side": 1}
    return SearchConfig.model_validate(values | changes)


def run(params: Params, larger: Path, folder: Path, **changes: object) -> dict[str, Number]:
    return search(
        config(**changes),
        recipe=params.finetune,
        backbone=params.backbone,
        seed=params.seed,
        images=larger / "ingest",
        activations=larger / "embed",
        storage=folder / "search.db",
        out=folder / "out",
    )


def test_it_writes_its_trials_its_winner_and_plots(params: Params, larger: Path, tmp_path: Path) -> None:
    best = run(params, larger, tmp_path)
    out = tmp_path / "out"
    trials = pd.read_csv(out / "trials.csv")
    assert len(trials) == 4
    assert trials["epochs"].max() == 2
    complete = trials[trials["state"] == "complete"]
    assert best["lr"] == pytest.approx(complete.iloc[0]["lr"], rel=0.01)
    assert json.loads((out / "best.json").read_text()) == best
    assert {path.name for path in out.glob("*.png")} == {
        "history.png",
        "importance.png",
        "parallel_coordinate.png",
    }


def test_a_trial_learns_from_its_part_of_the_lesions(
    params: Params, larger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_table(larger / "ingest/images.parquet", split="train")
    train_tail, seen = training.train_tail, []

    def train(tail: Tail, train: Examples, val: Examples, *args, **kwargs):  # noqa: ANN002, ANN003, ANN202
        seen.append((train.rows.numpy(), len(val.labels)))
        return train_tail(tail, train, val, *args, **kwargs)

    monkeypatch.setattr(training, "train_tail", train)
    run(params, larger, tmp_path, trials=2)
    rows, validated = seen[0]
    assert 0.35 < len(rows) / len(table) < 0.65
    assert set(table["label"].iloc[rows]) == set(table["label"])
    assert not set(table["group_id"].iloc[rows]) & set(table["group_id"].drop(rows))
    assert validated == len(read_table(larger / "ingest/images.parquet", split="val"))
    assert np.array_equal(rows, seen[1][0]), "trials are compared on the same lesions"


def test_a_part_that_would_miss_a_class_is_refused(params: Params, larger: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"search\.part: class '\w+' has \d+ training lesions or patients"):
        run(params, larger, tmp_path, part=1000)


def test_more_trials_go_on_where_it_ended(params: Params, larger: Path, tmp_path: Path) -> None:
    run(params, larger, tmp_path, trials=2)
    run(params, larger, tmp_path, trials=3)
    run(params, larger, tmp_path / "whole", trials=3)
    one, other = (pd.read_csv(folder / "out/trials.csv") for folder in (tmp_path, tmp_path / "whole"))
    assert one.equals(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"learning_rate": SPACE["lr"]}}, "cannot search learning_rate; what can be: batch_size"),
        ({"space": {"epochs": SPACE["dropout"]}}, "cannot search epochs"),
        ({"sampler": "grid"}, "a grid needs choices, and lr has low and high"),
        ({"space": {}}, "at least 1 item"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)
