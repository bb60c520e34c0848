import json
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from dermtune.params import Params
from dermtune.search_space import Number
from dermtune.stages.search import SearchConfig, search

SPACE = {"lr": {"low": 0.0001, "high": 0.05, "log": True}, "dropout": {"choices": [0.0, 0.5]}}


def config(**changes: object) -> SearchConfig:
    values = {"trials": 4, "sampler": "tpe", "part": 2, "epochs": 2, "space": SPACE}
    return SearchConfig.model_validate(values | changes)


def run(params: Params, ingested: Path, embedded: Path, folder: Path, **changes: object) -> dict[str, Number]:
    return search(
        config(**changes),
        recipe=params.finetune,
        backbone=params.backbone,
        seed=params.seed,
        images=ingested,
        activations=embedded,
        storage=folder / "search.db",
        out=folder / "out",
    )


def test_it_writes_its_trials_its_winner_and_plots(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    best = run(params, ingested, embedded, tmp_path)
    out = tmp_path / "out"
    trials = pd.read_csv(out / "trials.csv")
    assert len(trials) == 4
    assert trials["epochs"].max() == 2
    complete = trials[trials["state"] == "complete"]
    assert best["lr"] == pytest.approx(complete.iloc[0]["lr"], rel=0.01)
    assert json.loads((out / "best.json").read_text()) == best
    assert (out / "history.png").is_file()


def test_more_trials_go_on_where_it_ended(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    run(params, ingested, embedded, tmp_path, trials=2)
    run(params, ingested, embedded, tmp_path, trials=3)
    run(params, ingested, embedded, tmp_path / "whole", trials=3)
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
