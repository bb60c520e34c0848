"""finetune: stored activations in; the trained tails and their learning curves out.

Early stopping sees validation images; the test split is not read.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dermtune.config import BackboneConfig
from dermtune.disk import require_room, training_bytes
from dermtune.recipe import FinetuneConfig
from dermtune_bundle.files import atomic_path

if TYPE_CHECKING:
    from dermtune.checkpoint import Resume
    from dermtune.task import Task

log = logging.getLogger(__name__)


def finetune(
    config: FinetuneConfig,
    *,
    backbone: BackboneConfig,
    seed: int,
    images: Path,
    activations: Path,
    out: Path,
    checkpoint: Path,
) -> None:
    """Train the tails on stored activations; under torchrun, in all its processes.

    Raises:
        ConfigError: `folds` needs what augment did not store, or there is but one of `groups`.
        DataError: the activations are stale, foreign or missing, or a class is too rare for `folds`.
    """
    from dermtune.checkpoint import Resume
    from dermtune.distributed import is_first, process_group
    from dermtune.figures import learning_curves, write_figure
    from dermtune.leakage import require_no_leakage
    from dermtune.network_size import size_of
    from dermtune.tails import write_tails
    from dermtune.task import read_task
    from dermtune.training import train_ensemble
    from dermtune.trunk import resolve_device

    out.mkdir(parents=True, exist_ok=True)
    task = read_task(images, activations, backbone=backbone, seed=seed, groups=config.weighed_groups)
    require_no_leakage(images)
    tail = task.network.tail(len(task.classes), dropout=0, seed=0)
    for folder in (out, checkpoint.parent):  # they may lie on different disks
        require_room("finetune", training_bytes(tail, tails=config.ensemble, folds=config.folds), folder)
    lineage = task.lineage | {"finetune": config.model_dump()}
    resume = Resume(checkpoint, fingerprint=json.dumps(lineage, sort_keys=True))
    with process_group(resolve_device(config.device, key="finetune.device")):
        cross_validation = _cross_validate(config, task, seed=seed, out=out, resume=resume)
        tails, histories = train_ensemble(task, config, seed=seed, resume=resume)
        if not is_first():
            return  # the first process writes what all have learned
    size = size_of(task.network.trunk, tails[0], input_size=backbone.input_size)
    write_tails(tails, lineage | cross_validation | {"size": asdict(size)}, out)
    curves = pd.DataFrame([asdict(record) for history in histories for record in history])
    # of an ensemble, the mean of its members, as long as all were training
    whole = curves[curves["epoch"] < min(map(len, histories))]
    curves = whole.groupby("epoch", as_index=False).mean()
    with atomic_path(out / "history.csv") as temporary:
        curves.to_csv(temporary, index=False, float_format="%.6g")
    write_figure(learning_curves(curves), out / "learning_curves.png")
    resume.forget()


def _cross_validate(
    config: FinetuneConfig, task: "Task", *, seed: int, out: Path, resume: "Resume"
) -> dict[str, Any]:
    """Run the folds that the config asks for; gives what the lineage says of them."""
    from dermtune.cross_validation import cross_validate, summarize_folds
    from dermtune.distributed import is_first

    path = out / "cross_validation.csv"
    if is_first():
        path.unlink(missing_ok=True)
    if not config.folds:
        return {}
    folds = cross_validate(task, config, seed=seed, resume=resume)
    if is_first():
        with atomic_path(path) as temporary:
            folds.to_csv(temporary, index_label="fold", float_format="%.6g")
    found = summarize_folds(folds)
    for metric, numbers in found.items():
        shown = ("undefined" if number is None else f"{number:.3f}" for number in numbers.values())
        log.info("%d folds: %s %s [%s, %s]", config.folds, metric, *shown)
    return {"cross_validation": {"folds": config.folds, "of": "one tail, no test views", **found}}
