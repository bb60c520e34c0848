"""search: stored activations in; a table of trials, plots and the best hyper-parameters of the tail out.

Beside the pipeline: it never re-runs what comes before finetune, and it reads no test image.
"""

import hashlib
import json
import logging
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from dermtune.config import BackboneConfig, Config
from dermtune.csv_tables import write_tables
from dermtune.engine import LOCAL, ComputeConfig
from dermtune.errors import DivergedError
from dermtune.fingerprint import code_fingerprint
from dermtune.recipe import FinetuneConfig
from dermtune.search_space import Choices, Number, Sampler, Span
from dermtune_bundle.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from dermtune.search import Score
    from dermtune.task import Task
    from dermtune.training import EpochRecord

log = logging.getLogger(__name__)

_FIXED = {
    *("epochs", "head_epochs", "patience", "ensemble", "folds", "device"),
}
_WORDS = {"mitigation", "groups"}  # no numbers: a search takes them as they are


class SearchConfig(Config):
    """What is tried, and how long."""

    trials: Annotated[int, Field(ge=1)]
    sampler: Sampler
    """`tpe` learns from the trials before, `random` does not, `grid` tries every combination of choices."""
    part: Annotated[int, Field(ge=1)]
    """A trial learns from one in so many of the training lesions; 1: from all."""
    epochs: Annotated[int, Field(ge=1)]
    """Of the longest trials; poor ones are stopped earlier."""
    side_by_side: Annotated[int, Field(ge=1)]
    """Trials that are drawn at once, for Ray to run side by side; more learn less from one another."""
    space: Annotated[dict[str, Span | Choices], Field(min_length=1)]
    """Key of `finetune` to what is tried: {low, high, log} or {choices}."""

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        known = set(FinetuneConfig.model_fields) - _FIXED - _WORDS
        if unknown := sorted(self.space.keys() - known):
            raise ValueError(
                f"space: cannot search {', '.join(unknown)}; what can be: {', '.join(sorted(known))}"
            )
        if self.sampler == "grid" and (spans := [k for k, v in self.space.items() if isinstance(v, Span)]):
            raise ValueError(f"space: a grid needs choices, and {', '.join(spans)} has low and high")
        return self


def search(
    config: SearchConfig,
    *,
    recipe: FinetuneConfig,
    backbone: BackboneConfig,
    seed: int,
    images: Path,
    activations: Path,
    storage: Path,
    out: Path,
    compute: ComputeConfig = LOCAL,
) -> dict[str, Number]:
    """Try values for keys of `finetune`; gives the best on validation (`EpochRecord.score`).

    Raises:
        DataError: the activations are stale, foreign or missing, or a class is too rare for `part`.
    """
    from dermtune.figures import parameter_importances, trial_coordinates, trial_history, write_figure
    from dermtune.search import best_values, importances, open_study, run_trials, trials_table
    from dermtune.splits import require_every_class
    from dermtune.task import read_task
    from dermtune.trunk import resolve_device

    task = read_task(images, activations, backbone=backbone, seed=seed, groups=recipe.weighed_groups)
    device = resolve_device(recipe.device, key="finetune.device")
    if config.part > 1:
        labels, groups = (task.train_table[key].tolist() for key in ("label", "group_id"))
        require_every_class(labels, groups, folds=config.part, key="search.part")
    made_from = task.lineage | {
        "search": config.model_dump(exclude={"trials"}),
        "search_code_sha256": code_fingerprint("dermtune.search", "dermtune.search_space", __name__),
        "finetune": recipe.model_dump(
            exclude={*config.space, *_FIXED}
        ),  # what a trial changes is no part of it
    }
    study_name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    study = open_study(storage, study_name)
    make = partial(_make_score, task, config, recipe, seed=seed, device=device)
    if compute.engine == "ray":  # elsewhere it is read anew: pickled, its mapped arrays would go along whole
        read = partial(
            read_task,
            images.absolute(),
            activations.absolute(),
            backbone=backbone,
            seed=seed,
            groups=recipe.weighed_groups,
        )
        make = partial(_read_and_make_score, read, config, recipe, seed=seed, device=device)
    run_trials(
        study,
        make,
        config.space,
        start={key: getattr(recipe, key) for key in config.space},
        sampler=config.sampler,
        trials=config.trials,
        seed=seed,
        epochs=config.epochs,
        unpruned=recipe.head_epochs,
        side_by_side=config.side_by_side,
        compute=compute,
        gpus=int(device == "cuda"),
    )
    best = best_values(study, config.space)
    trials = trials_table(study)
    write_tables({"trials": trials}, out)
    with atomic_path(out / "best.json") as temporary:
        temporary.write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")
    write_figure(trial_history(trials), out / "history.png")
    write_figure(parameter_importances(importances(study, seed=seed)), out / "importance.png")
    logarithmic = {key for key, values in config.space.items() if isinstance(values, Span) and values.log}
    write_figure(trial_coordinates(trials, logarithmic), out / "parallel_coordinate.png")
    log.info(
        "best of %d trials: %.4f, the mean of macro AUROC and balanced accuracy on validation, with %s",
        len(trials),
        study.best_value,
        best,
    )
    return best


def _read_and_make_score(
    read: "Callable[[], Task]", config: SearchConfig, recipe: FinetuneConfig, *, seed: int, device: str
) -> "Score":
    return _make_score(read(), config, recipe, seed=seed, device=device)


def _make_score(
    task: "Task", config: SearchConfig, recipe: FinetuneConfig, *, seed: int, device: str
) -> "Score":
    """What trains on a task with a trial's values."""
    import torch

    from dermtune.search import Asked, Tried
    from dermtune.splits import assign_folds
    from dermtune.training import train_tail

    train = task.train.resident(device)
    if config.part > 1:
        labels, groups = (task.train_table[key].tolist() for key in ("label", "group_id"))
        part_of = assign_folds(labels, groups, folds=config.part, seed=seed)
        train = train.only(torch.from_numpy((part_of == 0).nonzero()[0]))
    brief = {"epochs": config.epochs, "patience": config.epochs}

    def score(trial: Asked) -> Tried:
        scores: list[float] = []

        def look(record: "EpochRecord") -> None:
            scores.append(record.score)
            if record.score < trial.least.get(len(scores), -math.inf):
                raise _PoorError

        tried = recipe.model_copy(update=trial.values | brief)
        tail = task.network.tail(len(task.classes), dropout=tried.dropout, seed=seed)
        named = f"trial {trial.number}, "
        try:
            train_tail(
                tail, train, task.val, tried, seed=seed, device=device, on_epoch=look, description=named
            )
        except _PoorError:
            return Tried(scores, stopped=True)
        except DivergedError as error:  # these values make training diverge; others may not
            log.info("%s%s", named, error)
            return Tried(scores, stopped=True)
        return Tried(scores, stopped=False)

    return score


class _PoorError(Exception):
    """This trial is not worth going on with."""
