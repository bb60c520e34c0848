"""Cross-validation: how much the metrics of a recipe depend on which lesions it learned from."""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t

from dermtune.backbone import Tail
from dermtune.calibration import decision_weights, fit_temperature, prior_shift, softmax
from dermtune.checkpoint import Resume
from dermtune.errors import ConfigError
from dermtune.labels import lesion_class
from dermtune.metrics import Floats, Predictions, headline, measure, summarize
from dermtune.recipe import FinetuneConfig
from dermtune.splits import assign_folds, require_every_class
from dermtune.training import Examples, class_frequencies, predict_logits, train_tail
from dermtune.trunk import resolve_device

if TYPE_CHECKING:
    from dermtune.task import Task


def cross_validate(task: "Task", config: FinetuneConfig, *, seed: int, resume: Resume) -> pd.DataFrame:
    """Train on all folds but one, in turn, and measure on that one: a row a fold, a column a metric.

    One tail a fold, without test views, whatever the recipe says of ensembles. Early stopping and
    temperature see the validation split, never the fold that is held out. Its images are looked at as they
    are, unvaried.

    Raises:
        ConfigError: augment did not store the unvaried training images.
        DataError: a class has fewer lesions or patients than there are folds.
    """
    if task.plain is None:
        raise ConfigError("finetune.folds: needs augment.plain: true; set it and run `dvc repro`")
    labels, groups = (task.train_table[key].tolist() for key in ("label", "group_id"))
    require_every_class(labels, groups, folds=config.folds, key="finetune.folds")
    fold_of = assign_folds(labels, groups, folds=config.folds, seed=seed)
    device = resolve_device(config.device, key="finetune.device")
    train = task.train.resident(device)
    rows = []
    for fold in range(config.folds):
        learned, held_out = (
            torch.from_numpy(np.flatnonzero(part)) for part in (fold_of != fold, fold_of == fold)
        )
        tail, _ = train_tail(
            task.network.tail(len(task.classes), dropout=config.dropout, seed=seed),
            train.only(learned),
            task.val,
            config,
            seed=seed,
            device=device,
            resume=resume.of(f"fold-{fold}"),
            description=f"fold {fold + 1}/{config.folds}, ",
        )
        frequencies = class_frequencies(task.train.labels[learned], len(task.classes))
        rows.append(
            _measure(tail, task, config, plain=task.plain, frequencies=frequencies, held_out=held_out)
        )
    return pd.DataFrame(rows)


def _measure(
    tail: Tail,
    task: "Task",
    config: FinetuneConfig,
    *,
    plain: Examples,
    frequencies: Floats,
    held_out: torch.Tensor,
) -> dict[str, float | None]:
    """The headline metrics on the fold that is held out."""

    def logits(examples: Examples) -> Floats:
        found = predict_logits(tail.to("cpu"), examples, "cpu").double().numpy()
        shifted: Floats = found + prior_shift(frequencies, config.class_balance)
        return shifted

    temperature = fit_temperature(logits(task.val), task.val.labels.numpy())
    fold = plain.only(held_out)
    probabilities = softmax(logits(fold), temperature)
    predictions = Predictions(
        tuple(task.classes),
        probabilities,
        fold.labels.numpy(),
        (probabilities * decision_weights(frequencies, config.decision_balance)).argmax(1),
        task.train_table["lesion_id"].to_numpy(dtype=object)[held_out.numpy()],
        tuple(lesion_class(name).malignant for name in task.classes),
    )
    # one draw: the interval comes from the folds
    measured = measure(predictions, [], draws=1, rng=np.random.default_rng(0))
    return headline(summarize(predictions, [], measured))


def summarize_folds(folds: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Mean of each metric over the folds that define it, with its 95% interval; None where it has none.

    The trainings share most of their images, so the plain interval would be too narrow; its variance is
    multiplied by 1 + K * n_test / n_train, which is 1 + K / (K - 1) for K folds.

    Args:
        folds: a row a fold, a column a metric.

    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 2003, section 3.
    """
    return {
        str(metric): _interval(values.dropna().to_numpy(float), str(metric))
        for metric, values in folds.items()
    }


def _interval(values: Floats, metric: str) -> dict[str, float | None]:
    count = len(values)
    if count < 2:  # noqa: PLR2004 (one value has no spread)
        return {"mean": float(values[0]) if count else None, "low": None, "high": None}
    reach = student_t.ppf(0.975, count - 1) * np.sqrt((1 / count + 1 / (count - 1)) * values.var(ddof=1))
    low, high = np.clip(values.mean() + np.array([-reach, reach]), 0, 2 if metric == "brier" else 1)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}
