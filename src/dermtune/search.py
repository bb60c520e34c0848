"""Search for better hyper-parameters of the tail with Optuna; stored activations make a trial cheap."""

import itertools
import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import TrialState

from dermtune.engine import LOCAL, ComputeConfig, Make, engine
from dermtune.errors import DataError
from dermtune.search_space import Number, Sampler, Space

log = logging.getLogger(__name__)

_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_STARTUP_TRIALS = 8  # drawn at random before TPE has something to learn from
_UNPRUNED_TRIALS = 4  # seen at an epoch before any is stopped there


@dataclass(frozen=True)
class Tried:
    """What came of one trial."""

    scores: Sequence[float]
    """Of its epochs; the highest is the trial's."""
    stopped: bool
    """Before its last epoch."""


@dataclass(frozen=True)
class Asked:
    """One trial to be run."""

    number: int
    values: dict[str, Number]
    least: Mapping[int, float]
    """The score that it must have after an epoch to go on."""


Score = Callable[[Asked], Tried]
"""Runs a trial; pure."""


def least_scores(study: optuna.Study, epochs: int, *, unpruned: int) -> dict[int, float]:
    """What a trial must reach at a third, and at two thirds, of its epochs: the median of those before it.

    Trials that were stopped count as well, those that were cut off do not. Optuna's own pruners compare with
    complete trials alone, or with those cut off too.

    Args:
        study: the trials so far.
        epochs: of a trial.
        unpruned: first epochs, after which nothing is asked.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020: successive halving.
    """
    done = study.get_trials(deepcopy=False, states=_DONE)
    least = {}
    for epoch in (math.ceil(epochs / 3), math.ceil(2 * epochs / 3)):
        seen = [one.intermediate_values[epoch] for one in done if epoch in one.intermediate_values]
        if unpruned < epoch < epochs and len(seen) >= _UNPRUNED_TRIALS:
            least[epoch] = statistics.median(seen)
    return least


def open_study(storage: Path, name: str) -> optuna.Study:
    """Open or begin a study that maximises a score.

    Args:
        storage: an SQLite file; what it holds already is resumed.
        name: of the study, unlike for whatever makes scores incomparable.
    """
    storage.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{storage.absolute()}",
        study_name=name,
        direction="maximize",
        load_if_exists=True,
    )
    for trial in study.get_trials(states=[TrialState.RUNNING]):  # cut off when the run before was
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def run_trials(
    study: optuna.Study,
    make: Make[Asked, Tried],
    space: Space,
    *,
    start: Mapping[str, Number],
    sampler: Sampler,
    trials: int,
    seed: int,
    epochs: int,
    unpruned: int = 0,
    side_by_side: int = 1,
    compute: ComputeConfig = LOCAL,
    gpus: int = 0,
) -> None:
    """Run trials until `trials` are done, counting those of an interrupted run.

    Each trial's draws, and what it must reach, depend on the seed and on the trials done before, so that a
    resumed study goes on as an uninterrupted one would. Trials side by side know nothing of one another and
    are kept together, so that where they run, and how many at once, changes nothing.

    Args:
        study: to add to.
        make: makes the `Score`, in whatever process.
        space: what to draw from.
        start: the first trial's values: those in use.
        sampler: how to draw; `grid` goes through all combinations of choices.
        trials: how many in all.
        seed: of the draws.
        epochs: of a trial that is not stopped.
        unpruned: first epochs in which none is.
        side_by_side: trials that are drawn at once.
        compute: where they run.
        gpus: that a trial needs.

    Raises:
        DataError: a trial's score is no number.
    """
    before, began = len(study.get_trials(deepcopy=False, states=_DONE)), time.monotonic()
    with engine(compute, make, gpus=gpus) as run:
        while (done := len(study.get_trials(deepcopy=False, states=_DONE))) < trials:
            asked = _ask(
                study, space, start=start, sampler=sampler, count=min(side_by_side, trials - done), seed=seed
            )
            if not asked:
                log.info("the grid has no more than %d combinations", done)
                return
            least = least_scores(study, epochs, unpruned=unpruned)
            found = list(run(Asked(trial.number, values, least) for trial, values in asked))
            for (trial, _), tried in zip(asked, found, strict=True):
                _tell(study, trial, tried)
            now = done + len(asked)
            minutes = (time.monotonic() - began) / (now - before) * (trials - now) / 60
            log.info("trial %d of %d done; about %.0f min left", now, trials, minutes)


def _ask(
    study: optuna.Study,
    space: Space,
    *,
    start: Mapping[str, Number],
    sampler: Sampler,
    count: int,
    seed: int,
) -> list[tuple[optuna.Trial, dict[str, Number]]]:
    """Draw the next trials, fewer where a grid has no more."""
    done = len(study.get_trials(deepcopy=False, states=_DONE))
    waiting = study.get_trials(deepcopy=False, states=[TrialState.WAITING])  # for a run that was killed
    fixed = [trial.system_attrs.get("fixed_params") for trial in waiting]
    left = _combinations_left(study, space, seed) if sampler == "grid" else []
    left = [one for one in left if one not in fixed]
    asked = []
    for number in range(count):
        study.sampler = _sampler(sampler, (seed + done + number) % 2**32)
        if number >= len(waiting):
            if sampler == "grid":
                if not left:
                    break
                study.enqueue_trial(left.pop(0), skip_if_exists=False)
            elif done == number == 0 and all(values.holds(start[name]) for name, values in space.items()):
                study.enqueue_trial(dict(start), skip_if_exists=False)
        trial = study.ask()
        asked.append((trial, {name: values.suggest(trial, name) for name, values in space.items()}))
    return asked


def _tell(study: optuna.Study, trial: optuna.Trial, tried: Tried) -> None:
    for epoch, score in enumerate(tried.scores, start=1):
        trial.report(score, epoch)
    if tried.stopped:
        study.tell(trial, state=TrialState.PRUNED)
    elif not tried.scores or not math.isfinite(max(tried.scores)):
        study.tell(trial, state=TrialState.FAIL)
        raise DataError(f"search: the score of a trial is no number; its values are {trial.params}")
    else:
        study.tell(trial, max(tried.scores))


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
