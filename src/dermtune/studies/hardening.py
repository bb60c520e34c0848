"""Adversarial training of the tail: it learns from images that are attacked anew at every step.

Source: Madry et al. 2018; with one step from a random start, Wong, Rice and Kolter 2020, Fast is better than
free, algorithm 3.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dermtune.backbone import Tail, Trunk
from dermtune.calibration import Calibrator, decision_weights, fit_calibrator, prior_shift
from dermtune.compare import Difference, compare, difference
from dermtune.duplicates import turn
from dermtune.goals import Goal
from dermtune.metrics import Predictions, Sampled, resample, share
from dermtune.operating_points import choose_operating_points
from dermtune.progress import progress
from dermtune.recipe import FinetuneConfig
from dermtune.studies import AttacksConfig, HardeningConfig
from dermtune.studies.adversary import (
    GREY_LEVELS,
    Decision,
    Flagging,
    Naming,
    Norm,
    Pixels,
    Scores,
    attack,
    flagging,
    naming,
)
from dermtune.studies.images import Images
from dermtune.tails import TrainedTails
from dermtune.training import SEEDS_APART, Examples, predict_logits, train_tail
from dermtune_bundle.manifest import Contract, OperatingPoint

if TYPE_CHECKING:
    from dermtune.params import Params

_TURNS, _BATCH = 8, 32
_STEP = 1.25  # of eps, as the source has it


@dataclass(frozen=True, kw_only=True)
class Attacked(Examples):
    """Images that are attacked when they are asked for, by way of the tail as it is by then.

    `labels` and `rows` repeat the images once an epoch, so that one long epoch of training holds them all: it
    has no best epoch to choose, which on unchanged images would be the least robust one.
    """

    trunk: Trunk
    tail: Tail
    """The one that is being trained."""
    pixels: NDArray[np.uint8]
    """(N, S, S, 3)."""
    eps: float
    """Grey levels; 0: the images as they are."""
    seed: int
    """Draws where the attacks start."""

    def batches(self, epoch: int, parts: Iterable[Tensor], device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch for each part, one after another: each needs the tail that the last one left."""
        rng = torch.Generator().manual_seed(self.seed + epoch)
        for part in parts:
            labels = self.labels[part].to(device)
            clean = torch.from_numpy(self._turned(part)).permute(0, 3, 1, 2).to(device).float()
            changed = attacked(self.trunk, self.tail, clean, labels, eps=self.eps, rng=rng)
            with torch.no_grad():
                activations = self.trunk(changed)
            yield activations, labels

    def _turned(self, part: Tensor) -> NDArray[np.uint8]:
        """Each repetition shows an image in the next of its flips and turns."""
        found = [
            turn(self.pixels[row : row + 1], number % _TURNS)[0]
            for number, row in zip(*np.divmod(part.numpy(), len(self.pixels)), strict=True)
        ]
        return np.stack(found)


def attacked(
    trunk: Trunk, tail: Tail, clean: Tensor, labels: Tensor, *, eps: float, rng: torch.Generator
) -> Tensor:
    """Images (N, 3, S, S), from 0 to 255, one step from a random start up the loss; at most eps from clean.

    The tail is left as it is, with its statistics and gradients.
    """
    if not eps:
        return clean
    was_training = tail.training
    tail.eval()
    start = (2 * torch.rand(clean.shape, generator=rng) - 1).to(clean.device) * eps
    pixels = (clean + start).clamp(0, GREY_LEVELS).requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(tail(trunk(pixels)), labels), pixels)
    tail.train(was_training)
    change = (pixels.detach() - clean + _STEP * eps * gradient.sign()).clamp(-eps, eps)
    return (clean + change).clamp(0, GREY_LEVELS)


def harden(
    trained: TrainedTails,
    train: Images,
    val: Examples,
    recipe: FinetuneConfig,
    config: HardeningConfig,
    *,
    eps: float,
    seed: int,
) -> TrainedTails:
    """The same tails, trained on, on attacked images; the ones given stay as they are.

    Args:
        trained: what finetune handed on.
        train: training images, in the size that the network sees.
        val: activations of validation images, which are only looked at.
        recipe: for all but what `config` says.
        config: how long, and how fast.
        eps: of the attacks; 0: none, which is what more training alone does.
        seed: of the first tail.
    """
    own = recipe.model_copy(
        update={
            "epochs": 1,
            "head_epochs": 0,
            "patience": 1,
            "lr": config.lr,
            "class_balance": trained.class_balance,
            "mitigation": "none",  # it is about people, and the question is not
        }
    )
    hardened = []
    for number, before in enumerate(trained.tails):
        tail = copy.deepcopy(before).requires_grad_(requires_grad=True)
        tail.dropout.p = recipe.dropout
        own_seed = seed + SEEDS_APART * number
        examples = Attacked(
            views=(),
            labels=torch.from_numpy(np.tile(train.labels, config.epochs)),
            trunk=trained.trunk,
            tail=tail,
            pixels=train.pixels,
            eps=eps,
            seed=own_seed,
        )
        name = f"{'attacked' if eps else 'unchanged'} images, "
        found, _ = train_tail(tail, examples, val, own, seed=own_seed, device="cpu", description=name)
        hardened.append(found)
    return replace(trained, tails=hardened)


def see(trunk: Trunk, images: Images) -> Examples:
    """What the trunk sees of the images as they are."""
    parts = np.array_split(images.pixels, -(-len(images.pixels) // _BATCH))
    with torch.inference_mode():
        seen = [
            trunk(torch.from_numpy(part).permute(0, 3, 1, 2).float()).numpy()
            for part in progress(parts, "trunk", len(parts))
        ]
    return Examples([np.concatenate(seen)], torch.from_numpy(images.labels))


@dataclass(frozen=True)
class Calibrated:
    """Tails, calibrated and given thresholds on validation as `calibrate` would."""

    contract: Contract
    """With their numbers."""
    predictions: Predictions
    """Of all validation images."""
    points: tuple[OperatingPoint, ...]


def calibrated(
    trained: TrainedTails, val: Examples, images: Images, contract: Contract, goals: Mapping[str, Goal]
) -> Calibrated:
    """Calibrate tails on the validation images, and choose their thresholds there.

    Args:
        trained: the tails.
        val: what the trunk sees of the images.
        images: of validation.
        contract: of the tails that were shipped, whose classes and method hold.
        goals: of the operating points, by name.
    """
    logits = np.mean([predict_logits(tail, val, "cpu").double().numpy() for tail in trained.tails], axis=0)
    shift = prior_shift(trained.frequencies, trained.class_balance)
    # curves would hide from an attack what it does; a temperature keeps the order of the classes
    fitted: Calibrator = fit_calibrator(logits, images.labels, method="temperature", shift=shift)
    probabilities = fitted(logits)
    weights = decision_weights(trained.frequencies, trained.decision_balance)
    predictions = Predictions(
        images.classes,
        probabilities,
        images.labels,
        (probabilities * weights).argmax(1),
        images.lesions,
        tuple(known.malignant for known in contract.classes),
        images.table["group_id"].to_numpy(dtype=object),
    )
    points = choose_operating_points(predictions, goals)
    numbers = replace(
        contract.calibration,
        logit_scale=tuple(fitted.scale.tolist()),
        logit_shift=tuple(fitted.shift.tolist()),
    )
    return Calibrated(replace(contract, calibration=numbers, operating_points=points), predictions, points)


def measure_hardening(
    trained: TrainedTails,
    contract: Contract,
    train: Images,
    val: Images,
    *,
    rows: NDArray[np.integer],
    params: "Params",
) -> pd.DataFrame:
    """What training against attacks buys and costs, beside as much training without them.

    Args:
        trained: the tails that were shipped.
        contract: of their graph.
        train: images to learn from.
        val: images to judge by.
        rows: those of them that are attacked.
        params: `study.attacks`, the recipe and the bootstrap's draws.

    Returns:
        A row a metric and model: `images` (clean, attacked), `metric`, `model` (`unchanged` or `attacked`:
        the images that the tails were trained on), `shipped` (value of the tails that were shipped),
        `value`, `difference` to them with its 95% interval `low`, `high`.
    """
    config = params.study.attacks
    seen = see(trained.trunk, val)
    models = {"shipped": trained} | {
        name: harden(trained, train, seen, params.finetune, config.hardening, eps=eps, seed=params.seed)
        for name, eps in (("unchanged", 0), ("attacked", config.hardening.eps))
    }
    chosen_for = contract.lineage["calibrate"]["operating_points"]  # params.yaml may have changed since
    goals = {name: Goal.parse(chosen_for[name], source="model.json") for name in config.points}
    found = {name: calibrated(one, seen, val, contract, goals) for name, one in models.items()}
    chosen = val.only(rows)
    stood = {
        name: _under_attack(models[name], one.contract, chosen, config, params)
        for name, one in progress(found.items(), "attacks on the tails trained on", len(found))
    }
    tables = []
    for name in ("unchanged", "attacked"):
        both = [(found[one].predictions, found[one].points) for one in ("shipped", name)]
        clean = compare(*both, draws=params.evaluate.bootstrap, seed=params.seed)
        after = [difference(key, one, stood[name][key]) for key, one in stood["shipped"].items()]
        tables += [_rows(clean, "clean", name), _rows(after, "attacked", name)]
    return pd.concat(tables, ignore_index=True)


def _under_attack(
    trained: TrainedTails, contract: Contract, images: Images, config: AttacksConfig, params: "Params"
) -> dict[str, Sampled]:
    """Accuracy and the first point's sensitivity under PGD, of which torch judges what came.

    By the smallest eps in L-inf, and the middle one in L2, by which a file can hold still smaller changes.
    """
    # as `calibrated` saw it: without test views
    (point, *_), scores = contract.operating_points, Scores(trained, contract, test_views=1)
    named = naming(contract, images.labels), Naming(scores, contract), len(contract.classes), "Accuracy"
    flagged = flagging(contract, images.labels, point), Flagging(scores, contract, point), 2
    linf, l2 = config.linf[0], config.l2[len(config.l2) // 2]
    metrics = {}
    tried: tuple[tuple[Any, Norm, float, str], ...] = (
        (named, "linf", linf, f"PGD, L∞, {linf}/255"),
        (named, "l2", l2, f"PGD, L2, {l2:g}"),
        ((*flagged, f"Sensitivity, {point.name}"), "l2", l2, f"PGD, L2, {l2:g}"),
    )
    for (decision, module, classes, name), norm, eps, title in tried:
        right = stands(
            decision,
            module,
            images.pixels,
            norm=norm,
            eps=eps,
            classes=classes,
            steps=config.steps,
            seed=params.seed,
        )
        metrics[f"{name}, {title}"] = share(right, decision.right >= 0)
    groups = images.table["group_id"].to_numpy(object)
    return resample(metrics, groups, draws=params.evaluate.bootstrap, rng=np.random.default_rng(params.seed))


def stands(
    decision: Decision,
    module: nn.Module,
    pixels: Pixels,
    *,
    norm: Norm,
    eps: float,
    classes: int,
    steps: int,
    seed: int,
) -> NDArray[np.bool_]:
    """Which images (N,) are decided rightly, and still are after PGD; the module judges itself."""

    def right(rows: NDArray[np.intp], images: Pixels) -> NDArray[np.bool_]:
        with torch.inference_mode():
            said = module(torch.from_numpy(images).float()).argmax(1).numpy()
        found: NDArray[np.bool_] = said == decision.right[rows]
        return found

    rows = np.flatnonzero(right(np.arange(len(pixels)), pixels))
    standing = np.zeros(len(pixels), bool)
    if len(rows):
        changed = attack(
            "pgd",
            module,
            pixels[rows],
            decision.right[rows],
            norm=norm,
            eps=eps,
            classes=classes,
            steps=steps,
            seed=seed,
        )
        standing[rows] = right(rows, changed)
    return standing


def _rows(differences: Iterable[Difference], images: str, model: str) -> pd.DataFrame:
    """Where all draws are alike, no interval: that 0 of 24 stand twice does not say that they always will."""
    spans = ((one, (None, None) if one.low == one.high else (one.low, one.high)) for one in differences)
    return pd.DataFrame(
        {"images": images, "metric": one.metric, "model": model, "shipped": one.first, "value": one.second}
        | {"difference": one.value, "low": low, "high": high}
        for one, (low, high) in spans
    )
