"""Bias: whom the network serves worse, before and after each mitigation that finetune knows.

Lesions of training and validation are judged by networks that did not learn from them: in each fold, one that
learned from the others. Nothing stops early and no epoch is chosen, so that no image that judges has chosen
anything. The test split is not read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
import torch

from dermtune.backbone import Backbone, load_backbone, weights_fingerprint
from dermtune.calibration import decision_weights, prior_shift, softmax
from dermtune.csv_tables import write_tables
from dermtune.errors import ConfigError
from dermtune.groups import read_groups
from dermtune.labels import lesion_class
from dermtune.progress import progress
from dermtune.recipe import Attribute, FinetuneConfig, Mitigation
from dermtune.splits import assign_folds, require_every_class
from dermtune.studies import BiasConfig
from dermtune.studies.bias_measures import (
    MITIGATIONS,
    Bools,
    Judged,
    Trained,
    group_sizes,
    judge,
    measure_bias,
)
from dermtune.studies.bias_page import bias_figure, render_bias, verdict_on
from dermtune.studies.images import Images, balanced_rows, read_images, see_turned
from dermtune.studies.kept import Kept
from dermtune.studies.overview import Section, write_study
from dermtune.subgroups import LEAST_LESIONS
from dermtune.table import read_table, table_sha256
from dermtune.training import SEEDS_APART, Examples, class_frequencies, predict_logits, train_tail
from dermtune.trunk import make_runner, resolve_device

if TYPE_CHECKING:
    from dermtune.params import Params

_SPLITS: Final[tuple[Literal["train", "val"], ...]] = ("train", "val")
_TURNS = 4
_MONITORED = 32  # images on which each epoch is measured, for the log alone


def run_bias_study(params: "Params", *, images: Path, checkpoint: Path, out: Path) -> pd.DataFrame:
    """Train with each mitigation for each attribute, judge group by group, and write what came of it.

    Args:
        params: `study.bias`, the network of `backbone` and the recipe of `finetune`.
        images: what ingest wrote.
        checkpoint: file that keeps what is measured, until all is.
        out: the folder to write: bias.csv, groups.csv, and as `write_study`.

    Returns:
        As `measure_bias`.

    Raises:
        ConfigError: the backbone cannot be loaded or cut, or no class of the task is malignant, or all are.
        DataError: the images are missing or damaged, or too few for the folds.
    """
    config = params.study.bias
    backbone = params.backbone.model_copy(update={"input_size": config.input_size, "cut": config.cut})
    network = load_backbone(backbone)
    seen = _read_both(images, config, seed=params.seed)
    positive = _is_malignant(seen.classes)[seen.labels]
    if positive.all() or not positive.any():
        raise ConfigError(
            f"study.bias: {'all' if positive.any() else 'none'} of the classes {', '.join(seen.classes)} are"
            " malignant, and it judges how well these are told from the others; choose other ingest.classes"
        )
    groups = read_groups(images, seen.table, config.attributes)
    made_from = {
        "images": table_sha256(images),
        "weights": [*map(weights_fingerprint, (network.trunk, network.tail(1, dropout=0.0, seed=0)))],
        "params": [params.finetune.model_dump(), backbone.model_dump(), config.model_dump(), params.seed],
    }
    kept = Kept(checkpoint, made_from=made_from)
    judged = cross_fit(network, seen, groups, config, params.finetune, seed=params.seed, kept=kept)
    sizes = group_sizes(groups, seen.lesions, positive)
    found = measure_bias(
        judged,
        labels=seen.labels,
        positive=positive,
        lesions=seen.table["group_id"].to_numpy(object),
        groups=groups,
        sizes=sizes,
        draws=params.evaluate.bootstrap,
        seed=params.seed,
    )
    write_tables({"bias": found, "groups": sizes}, out)
    drawn = "The classes are as equally often as they can be: thresholds and specificities are of that mix."
    note = (
        f"{len(positive):,} images of {seen.lesion_count:,} lesions,"
        f" {len(np.unique(seen.lesions[positive])):,} of them malignant; {config.folds} folds,"
        f" {config.repeats} times. {drawn}"
    )
    figure = bias_figure(found, sizes, note=note)
    verdict = verdict_on(found)
    page = render_bias(
        found,
        sizes,
        figure,
        note=note,
        verdict=verdict,
        least=LEAST_LESIONS,
        sensitivity=config.sensitivity,
        repeats=config.repeats,
    )
    alt = "AUROC, sensitivity and specificity of each group before and after each mitigation"
    write_study(out, page, figure, Section("Whom it serves worse", verdict, alt))
    kept.forget()
    return found


def cross_fit(
    network: Backbone,
    images: Images,
    groups: pd.DataFrame,
    config: BiasConfig,
    recipe: FinetuneConfig,
    *,
    seed: int,
    kept: Kept,
) -> dict[Trained, list[Judged]]:
    """Train on all folds but one, in turn, with each mitigation for each attribute, and judge that one.

    Args:
        network: pretrained, and cut.
        images: N of them.
        groups: (N, attributes), as `read_groups` gives them.
        config: how often, how long, and for what the threshold is chosen.
        recipe: of the trainings, for all else.
        seed: the first one.
        kept: what was measured before.

    Returns:
        A `Judged` a repeat.

    Raises:
        DataError: a class has fewer lesions or patients than there are folds, or a fold too few malignant.
    """
    device = resolve_device(recipe.device, key="finetune.device")
    lesions = images.table["group_id"].to_numpy(object)
    names = [images.classes[label] for label in images.labels]
    require_every_class(names, list(lesions), folds=config.folds, key="study.bias.folds")
    partitions = [
        assign_folds(names, list(lesions), folds=config.folds, seed=_seed(seed, repeat))
        for repeat in range(config.repeats)
    ]
    malignant = _is_malignant(images.classes)
    examples = _see(network, images, device).resident(device)
    learner = _Learner(network, examples, malignant, groups, recipe, device)
    trained: list[Trained] = [(None, "none"), *product(config.attributes, MITIGATIONS[1:])]
    todo = [*product(trained, range(config.repeats), range(config.folds))]
    said: dict[tuple[Trained, int, int], dict[str, Any]] = {}
    for (attribute, mitigation), repeat, fold in progress(todo, "bias", len(todo)):
        learn = learner.for_fold(
            partitions[repeat] == fold, attribute, mitigation, config.epochs, seed=_seed(seed, repeat)
        )
        name = f"{attribute} {mitigation} {repeat} {fold}"
        said[(attribute, mitigation), repeat, fold] = kept.get(name, learn)
    positive = malignant[images.labels]
    return {
        one: [
            judge(
                {fold: said[one, repeat, fold] for fold in range(config.folds)},
                partitions[repeat],
                positive,
                lesions,
                sensitivity=config.sensitivity,
                seed=_seed(seed, repeat),
            )
            for repeat in range(config.repeats)
        ]
        for one in trained
    }


@dataclass(frozen=True)
class _Learner:
    """What all trainings share."""

    network: Backbone
    examples: Examples
    """The first view is the images as they are."""
    malignant: Bools
    """(K,)"""
    groups: pd.DataFrame
    recipe: FinetuneConfig
    device: str

    def for_fold(
        self, held_out: Bools, attribute: Attribute | None, mitigation: Mitigation, epochs: int, *, seed: int
    ) -> Callable[[], dict[str, Any]]:
        """A training on all but some of the images, to be run: what it says of those."""
        changes = {"epochs": epochs, "patience": epochs, "mitigation": mitigation}
        recipe = self.recipe.model_copy(update=changes)
        rows, others = (torch.from_numpy(np.flatnonzero(part)) for part in (~held_out, held_out))
        return lambda: self._learn(rows, others, attribute, recipe, seed)

    def _learn(
        self,
        rows: torch.Tensor,
        others: torch.Tensor,
        attribute: Attribute | None,
        recipe: FinetuneConfig,
        seed: int,
    ) -> dict[str, Any]:
        """The malignant `scores` and the class `named` of the others, in their order."""
        classes, train = len(self.malignant), self.examples.only(rows)
        if attribute is not None:
            numbers = np.unique(self.groups[attribute], return_inverse=True)[1]
            train = replace(train, groups=torch.from_numpy(numbers)[rows])
        monitored = balanced_rows(train.labels.numpy(), _MONITORED, seed=seed)
        tail, _ = train_tail(
            self.network.tail(classes, dropout=recipe.dropout, seed=seed),
            train,
            train.only(torch.from_numpy(monitored)),
            recipe,
            seed=seed,
            device=self.device,
            description=None,
            keep="last",
        )
        frequencies = class_frequencies(train.labels, classes)
        logits = predict_logits(tail, self.examples.only(others), self.device).double().numpy()
        probabilities = softmax(logits + prior_shift(frequencies, recipe.class_balance))
        weights = decision_weights(frequencies, recipe.decision_balance)
        scores = probabilities[:, self.malignant].sum(1)
        return {"scores": scores.tolist(), "named": (probabilities * weights).argmax(1).tolist()}


def _read_both(images: Path, config: BiasConfig, *, seed: int) -> Images:
    """Images of training and validation; of each as large a share as of the other."""
    table = read_table(images / "images.parquet")
    counts = [int((table["split"] == split).sum()) for split in _SPLITS]
    most = [round(config.images * count / sum(counts)) for count in counts]
    parts = [
        read_images(images, split, config.input_size, most=limit, seed=seed)
        for split, limit in zip(_SPLITS, most, strict=True)
    ]
    return Images(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.labels for part in parts]),
        pd.concat([part.table for part in parts], ignore_index=True),
        parts[0].classes,
    )


def _see(network: Backbone, images: Images, device: str) -> Examples:
    """What the frozen layers see of the images, as they are and flipped or turned."""
    size = images.pixels.shape[1]
    run = make_runner(network.trunk, input_size=size, dtype="float16", device=device)
    symmetries = progress(range(_TURNS), "views", _TURNS)
    views = [see_turned(run, images.pixels, symmetry) for symmetry in symmetries]
    return Examples(views, torch.from_numpy(images.labels))


def _is_malignant(classes: Sequence[str]) -> Bools:
    """Which of K classes are malignant, (K,)."""
    return np.array([lesion_class(name).malignant for name in classes])


def _seed(first: int, repeat: int) -> int:
    return (first + SEEDS_APART * repeat) % 2**32
