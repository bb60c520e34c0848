"""Search for better hyper-parameters of the tail with Optuna; stored activations make a trial cheap."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from dermtune.errors import DataError
from dermtune.search_space import Number, Sampler, Space

log = logging.getLogger(__name__)

_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_STARTUP_TRIALS = 8  # drawn at random before TPE has something to learn from
_REDUCTION = 3  # of the trials at a rung, one in three goes on to train three times as long


def open_study(storage: Path, name: str, *, seed: int) -> optuna.Study:
    """Open or begin a study that maximises a score.

    Args:
        storage: an SQLite file; what it holds already is resumed.
        name: of the study, unlike for whatever makes scores incomparable.
        seed: of the random forest behind the plot of importance, kept with the study.
    """
    storage.parent.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{storage.absolute()}",
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_REDUCTION),
    )
    study.set_user_attr("seed", seed)
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
    """

    def objective(trial: optuna.Trial) -> float:
        return score({name: values.suggest(trial, name) for name, values in space.items()}, trial)

    before, began = len(study.get_trials(deepcopy=False, states=_DONE)), time.monotonic()
    while (done := len(study.get_trials(deepcopy=False, states=_DONE))) < trials:
        study.sampler = _sampler(sampler, space, seed + done)
        if isinstance(study.sampler, optuna.samplers.GridSampler):
            if study.sampler.is_exhausted(study):
                log.info("the grid has no more than %d combinations", done)
                return
        elif done == 0 and all(values.holds(start[name]) for name, values in space.items()):
            study.enqueue_trial(dict(start), skip_if_exists=False)
        study.optimize(objective, n_trials=1)
        taken = time.monotonic() - began
        log.info(
            "trial %d of %d done; about %.0f min left",
            done + 1,
            trials,
            taken / (done + 1 - before) * (trials - done - 1) / 60,
        )


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


def search_figures(study: optuna.Study) -> dict[str, Figure]:
    """History, importance and parallel coordinates, by name; those that too few trials give are left out."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=study.user_attrs["seed"] % 2**31)
    drawers: dict[str, Callable[[], Any]] = {
        "history": lambda: plots.plot_optimization_history(study, target_name="validation AUROC, macro"),
        "importance": lambda: plots.plot_param_importances(study, evaluator=evaluator),
        "parallel_coordinate": lambda: plots.plot_parallel_coordinate(
            study, target_name="validation AUROC, macro"
        ),
    }
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    differ = len({trial.value for trial in complete}) > 1
    with _quiet_plots():
        return {name: draw().figure for name, draw in drawers.items() if differ or name == "history"}


@contextmanager
def _quiet_plots() -> Iterator[None]:
    """Optuna's plots are marked experimental, draw through pyplot and restyle it: undo both."""
    with warnings.catch_warnings(), plt.rc_context():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            yield
        finally:
            plt.close("all")


def _sampler(kind: Sampler, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    if kind == "grid":
        return optuna.samplers.GridSampler({name: values.ends() for name, values in space.items()}, seed=seed)
    if kind == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(n_startup_trials=_STARTUP_TRIALS, seed=seed)
