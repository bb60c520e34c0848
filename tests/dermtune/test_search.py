from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from dermtune.errors import DataError
from dermtune.search import (
    Asked,
    Tried,
    best_values,
    importances,
    least_scores,
    open_study,
    run_trials,
    trials_table,
)
from dermtune.search_space import Choices, Number, Sampler, Space, Span

Score = Callable[[Asked], Tried]
EPOCHS = 9
SPACE: Space = {"lr": Span(low=0.001, high=1.0, log=True), "dropout": Choices(choices=[0, 0.5])}
START: dict[str, Number] = {"lr": 0.5, "dropout": 0.5}


def score(trial: Asked) -> Tried:
    """Best at lr 0.03 and no dropout; a poor trial shows it from its first epoch on."""
    best = 1 - abs(trial.values["lr"] - 0.03) - 0.1 * trial.values["dropout"]
    scores = []
    for epoch in range(1, EPOCHS + 1):
        scores.append(best * epoch / EPOCHS)
        if scores[-1] < trial.least.get(epoch, 0):
            return Tried(scores, stopped=True)
    return Tried(scores, stopped=False)


def open_one(folder: Path) -> optuna.Study:
    return open_study(folder / "search.db", "one")


def search(
    folder: Path,
    trials: int,
    *,
    sampler: Sampler = "tpe",
    space: Space = SPACE,
    how: Score = score,
    side_by_side: int = 1,
    unpruned: int = 0,
    seed: int = 1,
) -> optuna.Study:
    study = open_one(folder)
    run_trials(
        study,
        lambda: how,
        space,
        start=START,
        sampler=sampler,
        trials=trials,
        seed=seed,
        epochs=EPOCHS,
        unpruned=unpruned,
        side_by_side=side_by_side,
    )
    return study


def history(study: optuna.Study) -> list[tuple[dict[str, Number], float | None]]:
    done = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return [(trial.params, trial.value) for trial in study.get_trials(states=done)]


def test_it_starts_from_the_recipe_in_use_and_finds_better(tmp_path: Path) -> None:
    study = search(tmp_path, 25)
    assert history(study)[0] == ({"lr": 0.5, "dropout": 0.5}, pytest.approx(0.48))
    assert study.best_value > 0.97
    best = best_values(study, SPACE)
    assert best["lr"] == pytest.approx(0.03, abs=0.03)
    assert best["lr"] == float(f"{best['lr']:.3g}")
    assert best["dropout"] == 0


def test_poor_trials_are_stopped_early(tmp_path: Path) -> None:
    table = trials_table(search(tmp_path, 25))
    assert {"complete", "pruned"} == set(table["state"])
    assert (table["epochs"] < 9).sum() > 5
    assert table["score"].is_monotonic_decreasing
    assert list(table.columns) == ["trial", "state", "epochs", "score", "lr", "dropout"]


def test_a_trial_is_stopped_in_the_worse_half_at_a_third_or_two_thirds(tmp_path: Path) -> None:
    study = open_one(tmp_path)
    for values in ([0.5] * 9, [0.7] * 3, [0.6] * 9):
        trial = study.ask()
        for epoch, value in enumerate(values, start=1):
            trial.report(value, epoch)
        study.tell(trial, value if len(values) == 9 else None, TrialState.PRUNED if len(values) < 9 else None)
    assert least_scores(study, EPOCHS, unpruned=0) == {}, "three are too few"
    study.ask().report(0.1, 3)  # was cut off: it counts for nothing
    assert least_scores(study, EPOCHS, unpruned=0) == {}
    trial = study.ask()
    for epoch in range(1, 10):
        trial.report(0.8, epoch)
    study.tell(trial, 0.8)
    assert least_scores(study, EPOCHS, unpruned=0) == {3: pytest.approx(0.65)}, (
        "of two thirds, three are known"
    )
    assert least_scores(study, EPOCHS, unpruned=3) == {}


def test_trials_side_by_side_know_nothing_of_one_another(tmp_path: Path) -> None:
    seen: dict[int, Asked] = {}

    def how(trial: Asked) -> Tried:
        seen[trial.number] = trial
        return score(trial)

    study = search(tmp_path / "one", 11, how=how, side_by_side=4)
    assert len(history(study)) == 11
    assert [len(one.least) for one in seen.values()] == [0] * 4 + [2] * 7, (
        "what was learned before they began"
    )
    assert seen[4].least == seen[7].least != seen[8].least
    assert len({tuple(trial.values.values()) for trial in seen.values()}) == 11
    assert history(search(tmp_path / "two", 11, side_by_side=4)) == history(study)


def test_a_grid_side_by_side_tries_every_combination_once_though_it_is_cut_off(tmp_path: Path) -> None:
    space = {"lr": Choices(choices=[0.01, 0.03, 0.1]), "dropout": Choices(choices=[0, 0.5])}
    with pytest.raises(_CutOffError):
        search(tmp_path, 50, sampler="grid", space=space, how=cut_off_in(5), side_by_side=4)
    study = open_one(tmp_path)
    combinations = [(lr, dropout) for lr in (0.01, 0.03, 0.1) for dropout in (0, 0.5)]
    left = [one for one in combinations if one not in [(*params.values(),) for params, _ in history(study)]]
    assert len(left) == 2
    study.enqueue_trial(dict(zip(space, left[1], strict=True)))  # was about to run
    search(tmp_path, 50, sampler="grid", space=space, side_by_side=4)
    assert sorted((*params.values(),) for params, _ in history(study)) == combinations


def test_no_trial_is_stopped_in_its_first_epochs(tmp_path: Path) -> None:
    study = search(tmp_path, 15, sampler="random", unpruned=3)
    assert set(trials_table(study)["epochs"]) == {6, 9}


def test_the_largest_seed_will_do(tmp_path: Path) -> None:
    study = search(tmp_path, 3, sampler="random", seed=2**32 - 1)
    assert len(history(study)) == 3
    assert set(importances(study, seed=2**32 - 1)) == set(SPACE)


def test_a_score_that_is_no_number_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the score of a trial is no number"):
        search(tmp_path, 2, how=lambda _: Tried([float("nan")], stopped=False))


class _CutOffError(Exception):
    pass


def test_an_interrupted_search_goes_on_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", 12)
    for number in (0, 6):  # after none, and after six more
        with pytest.raises(_CutOffError):
            search(tmp_path / "cut", 12, how=cut_off_in(number))
    resumed = search(tmp_path / "cut", 12)
    assert history(resumed) == history(whole)
    assert history(search(tmp_path / "cut", 12)) == history(whole), "nothing is left to do"


def cut_off_in(number: int) -> Score:
    """A score that fails in one trial."""
    begun = []

    def how(trial: Asked) -> Tried:
        begun.append(trial.number)
        if len(begun) == number + 1:
            raise _CutOffError
        return score(trial)

    return how


def test_a_trial_that_was_killed_is_run_again(tmp_path: Path) -> None:
    study = open_one(tmp_path)
    study.enqueue_trial(START)
    study.ask().report(1.0, 3)  # and nobody tells what came of it
    assert history(search(tmp_path, 6)) == history(search(tmp_path / "whole", 6))


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_trial_that_was_only_enqueued_is_run_once(tmp_path: Path, sampler: Sampler) -> None:
    space = {"lr": Choices(choices=[0.5, 0.03]), "dropout": Choices(choices=[0, 0.5])}
    study = open_one(tmp_path)
    study.enqueue_trial(START)  # and the run is killed
    tried = [params for params, _ in history(search(tmp_path, 4, sampler=sampler, space=space))]
    assert tried[0] == START
    assert len(tried) == 4
    if sampler == "grid":
        assert len({tuple(params.values()) for params in tried}) == 4


def test_a_grid_that_was_cut_off_misses_nothing(tmp_path: Path) -> None:
    space = {"lr": Choices(choices=[0.01, 0.03]), "dropout": Choices(choices=[0, 0.5])}
    with pytest.raises(_CutOffError):
        search(tmp_path, 50, sampler="grid", space=space, how=cut_off_in(2))
    study = search(tmp_path, 50, sampler="grid", space=space)
    tried = [(params["lr"], params["dropout"]) for params, _ in history(study)]
    assert sorted(tried) == [(0.01, 0), (0.01, 0.5), (0.03, 0), (0.03, 0.5)]


def test_another_search_in_the_same_file_is_apart(tmp_path: Path) -> None:
    search(tmp_path, 2)
    another = open_study(tmp_path / "search.db", "another")
    assert history(another) == []


def test_a_grid_tries_every_combination_once(tmp_path: Path) -> None:
    space = {"lr": Choices(choices=[0.01, 0.03]), "dropout": Choices(choices=[0, 0.25, 0.5])}
    study = search(
        tmp_path,
        50,
        sampler="grid",
        space=space,
        how=lambda trial: Tried([trial.values["lr"]], stopped=False),
    )
    tried = [(params["lr"], params["dropout"]) for params, _ in history(study)]
    assert sorted(tried) == [(lr, dropout) for lr in (0.01, 0.03) for dropout in (0, 0.25, 0.5)]


def test_random_draws_depend_on_the_seed_alone(tmp_path: Path) -> None:
    one, two = (history(search(tmp_path / name, 5, sampler="random")) for name in ("one", "two"))
    assert one == two


def test_no_complete_trial_is_said(tmp_path: Path) -> None:
    def prune(_: Asked) -> Tried:
        return Tried([], stopped=True)

    with pytest.raises(DataError, match="no trial ran to its end"):
        best_values(search(tmp_path, 2, how=prune), SPACE)


def test_importances_tell_what_matters_and_nothing_of_too_few_trials(tmp_path: Path) -> None:
    found = importances(search(tmp_path, 25), seed=1)
    assert list(found) == ["lr", "dropout"]
    assert found["lr"] > 0.5
    assert importances(search(tmp_path / "few", 1), seed=1) == {}
