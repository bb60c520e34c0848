"""Cross-validation: how much the metrics of a recipe depend on which lesions it learned from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t as student_t
from sklearn.model_selection import StratifiedGroupKFold

from dermtune.backbone import Tail
from dermtune.calibration import decision_weights, fit_temperature, prior_shift, softmax
from dermtune.errors import ConfigError
from dermtune.metrics import Floats, Predictions, headline, measure, summarize
from dermtune.stages.finetune import FinetuneConfig, operating_point
from dermtune.training import Examples, Resume, class_frequencies, predict_logits, train_tail
from dermtune.trunk import resolve_device

if TYPE_CHECKING:
    from dermtune.task import Task


def cross_validate(task: "Task", config: FinetuneConfig, *, seed: int, resume: Resume) -> pd.DataFrame:
    """Train on all folds but one, in turn, and measure on that one: a row a fold, a column a metric.

    The whole recipe is repeated: early stopping, temperature and threshold see the validation split, never
    the fold that is held out. Its images are looked at as they are, unvaried.

    Raises:
        ConfigError: augment did not store the unvaried training images.
    """
    if task.plain is None:
        raise ConfigError("finetune.folds: needs augment.plain: true; set it and run `dvc repro`")
    table = task.train_table
    fold_of = assign_folds(table["label"].tolist(), table["group_id"].tolist(), folds=config.folds, seed=seed)
    device = resolve_device(config.device, key="finetune.device")
    rows = []
    for fold in range(config.folds):
        learned, held_out = (
            torch.from_numpy(np.flatnonzero(part)) for part in (fold_of != fold, fold_of == fold)
        )
        tail, _ = train_tail(
            task.network.tail(len(task.classes), dropout=config.dropout, seed=seed),
            task.train.only(learned),
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

    on_val, fold = logits(task.val), plain.only(held_out)
    temperature = fit_temperature(on_val, task.val.labels.numpy()).temperature
    target = task.classes.index(config.target)
    point = operating_point(config, softmax(on_val, temperature)[:, target], task.val_table)
    probabilities = softmax(logits(fold), temperature)
    predictions = Predictions(
        tuple(task.classes),
        probabilities,
        fold.labels.numpy(),
        (probabilities * decision_weights(frequencies, config.decision_balance)).argmax(1),
        task.train_table["lesion_id"].to_numpy(dtype=object)[held_out.numpy()],
    )
    # one draw: the interval comes from the folds
    measured = measure(predictions, [point], draws=1, rng=np.random.default_rng(0))
    return headline(summarize(predictions, [point], measured))


def assign_folds(labels: Sequence[str], groups: Sequence[str], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Share images out to folds of about the same classes; images of one group share a fold.

    Args:
        labels: N class names.
        groups: N groups that must not part.
        folds: how many.
        seed: draws the shares.

    Returns:
        (N,) number of each image's fold, from 0.
    """
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(labels), np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(labels)), labels, groups)):
        fold_of[held_out] = fold
    return fold_of


def summarize_folds(folds: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean of each metric over the folds, with its 95% interval.

    The trainings share most of their images, so the plain interval would be too narrow; its variance is
    multiplied by 1 + K * n_test / n_train, which is 1 + K / (K - 1) for K folds.

    Args:
        folds: a row a fold, a column a metric.

    Source: Nadeau and Bengio, Inference for the generalization error, Machine Learning 2003, section 3.
    """
    count = len(folds)
    reach = student_t.ppf(0.975, count - 1) * np.sqrt((1 / count + 1 / (count - 1)) * folds.var(ddof=1))
    mean = folds.mean()
    return {
        metric: {"mean": float(mean[metric]), "low": float(low), "high": float(high)}
        for metric, low, high in zip(folds.columns, mean - reach, mean + reach, strict=True)
    }
