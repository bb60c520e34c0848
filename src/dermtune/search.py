"""Search for better hyper-parameters of the tail with Optuna; stored activations make a trial cheap."""

import itertools
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import TrialState

from dermtune.errors import DataError
from dermtune.search_space import Number, Sampler, Space

log = logging.getLogger(__name__)

_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_STARTUP_TRIALS = 8  # drawn at random before TPE has something to learn from
_UNPRUNED_TRIALS = 4  # seen at an epoch before any is stopped there


class Halving(optuna.pruners.BasePruner):
    """Stop a trial that is in the worse half when it reaches a third, or two thirds, of its epochs.

    Trials that were stopped count as well, those that were cut off do not. Optuna's own pruners compare with
    complete trials alone, or with those cut off too.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020: successive halving.
    """

    def __init__(self, epochs: int, *, unpruned: int) -> None:
        """No trial of so many epochs is stopped in the first `unpruned` ones."""
        thirds = (math.ceil(epochs / 3), math.ceil(2 * epochs / 3))
        self._rungs = {epoch for epoch in thirds if unpruned < epoch < epochs}

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        """Is this trial to be stopped, by what it has reported?"""
        epoch = trial.last_step
        if epoch not in self._rungs:
            return False
        done = study.get_trials(deepcopy=False, states=_DONE)
        others = [one.intermediate_values[epoch] for one in done if epoch in one.intermediate_values]
        enough = len(others) >= _UNPRUNED_TRIALS
        return enough and trial.intermediate_values[epoch] < statistics.median(others)


def open_study(storage: Path, name: str, *, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Open or begin a study that maximises a score.

    Args:
        storage: an SQLite file; what it holds already is resumed.
        name: of the study, unlike for whatever makes scores incomparable.
        pruner: stops poor trials early.
    """
    storage.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{storage.absolute()}",
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=pruner,
    )
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # cut off when the run before was
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def run_trials(
    study: optuna.Study,
    score: Callable[[dict[str, Number], optuna.Trial], float],
    space: Space,
    *,
    start: Mapping[str, Number],
    sampler: Sampler,
    trials: int,
    seed: int,
) -> None:
    """Run trials until `trials` are done, counting those of an interrupted run.

    Each trial's draws depend on the seed and on the trials done before, so that a resumed study goes on as
    an uninterrupted one would.

    Args:
        study: to add to.
        score: from a trial's values to what is to be as high as possible; may raise TrialPruned.
        space: what to draw from.
        start: the first trial's values: those in use.
        sampler: how to draw; `grid` goes through all combinations of choices.
        trials: how many in all.
        seed: of the draws.

    Raises:
        DataError: a trial's score is no number.
    """

    def objective(trial: optuna.Trial) -> float:
        return score({name: values.suggest(trial, name) for name, values in space.items()}, trial)

    before, began = len(study.get_trials(deepcopy=False, states=_DONE)), time.monotonic()
    while (done := len(study.get_trials(deepcopy=False, states=_DONE))) < trials:
        study.sampler = _sampler(sampler, (seed + done) % 2**32)
        waiting = study.get_trials(deepcopy=False, states=[TrialState.WAITING])  # for a run that was killed
        if sampler == "grid":
            left = _combinations_left(study, space, seed)
            if not left:
                log.info("the grid has no more than %d combinations", done)
                return
            if not waiting:
                study.enqueue_trial(left[0], skip_if_exists=False)
        elif done == 0 and not waiting and all(values.holds(start[name]) for name, values in space.items()):
            study.enqueue_trial(dict(start), skip_if_exists=False)
        study.optimize(objective, n_trials=1)
        if (last := study.get_trials(deepcopy=False)[-1]).state not in _DONE:
            raise DataError(f"search: the score of a trial is no number; its values are {last.params}")
        taken = time.monotonic() - began
        minutes = taken / (done + 1 - before) * (trials - done - 1) / 60
        log.info("trial %d of %d done; about %.0f min left", done + 1, trials, minutes)


def _combinations_left(study: optuna.Study, space: Space, seed: int) -> list[dict[str, Number]]:
    """Those that no trial has tried to its end, in an order that the seed draws."""
    tried = [trial.params for trial in study.get_trials(deepcopy=False, states=_DONE)]
    values = (choices.ends() for choices in space.values())
    combinations = [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*values)]
    random.Random(seed).shuffle(combinations)
    return [combination for combination in combinations if combination not in tried]


def best_values(study: optuna.Study, space: Space) -> dict[str, Number]:
    """The values of the best trial that ran to its end, as they were used.

    Raises:
        DataError: there is none.
    """
    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        raise DataError("search: no trial ran to its end; allow more search.trials, or other values")
    fixed = optuna.trial.FixedTrial(study.best_trial.params)
    return {name: values.suggest(fixed, name) for name, values in space.items()}


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row a trial that is done, best first: `trial, state, epochs, score`, and its values."""
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "epochs": len(trial.intermediate_values),
            "score": max(trial.intermediate_values.values(), default=trial.value),
            **trial.params,
        }
        for trial in study.get_trials(deepcopy=False, states=_DONE)
    ]
    return pd.DataFrame(rows).sort_values("score", ascending=False, kind="stable", ignore_index=True)


def importances(study: optuna.Study, *, seed: int) -> dict[str, float]:
    """Share of the scores' variance that each value explains, largest first; empty of too few trials.

    Source: Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing Hyperparameter Importance, ICML
    2014: functional ANOVA.
    """
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len({trial.value for trial in complete}) < 2:  # noqa: PLR2004 (nothing to explain)
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed % 2**31)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _sampler(kind: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    if kind == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=_STARTUP_TRIALS, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)
