"""Train the tail on stored activations: the loop, its learning rates and its loss."""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dermtune.backbone import Tail
from dermtune.calibration import decision_weights, prior_shift, softmax
from dermtune.checkpoint import Resume, State
from dermtune.distributed import (
    Share,
    all_sum,
    in_step,
    interleave,
    is_first,
    logits_of,
    own_share,
    processes,
    rank,
    require_same,
)
from dermtune.errors import DataError, DivergedError
from dermtune.metrics import macro_auroc, recall
from dermtune.mitigation import GroupWeights
from dermtune.prefetch import prefetch
from dermtune.progress import progress
from dermtune.trunk import reproducible, resolve_device, within_memory

if TYPE_CHECKING:
    from dermtune.recipe import FinetuneConfig
    from dermtune.task import Task

log = logging.getLogger(__name__)

Activations = NDArray[np.floating]
SEEDS_APART = 1000
"""Between the seeds of trainings that must differ; one training uses a seed an epoch."""
_EVAL_BATCH = 64
_RESIDENT_SHARE = 0.5  # of a GPU's free memory that activations may take


@dataclass(frozen=True)
class Examples:
    """Labelled activations, memory-mapped: one or more views of the same images."""

    views: Sequence[Activations | Tensor]
    """Each (M, C, h, w)."""
    labels: Tensor
    """(N,) int64 class indices."""
    rows: Tensor | None = None
    """(N,) which rows of the views the images are; None: all, in order."""
    groups: Tensor | None = None
    """(N,) int64 group of each image, which a mitigation weighs; None: not asked."""

    def batch(self, epoch: int, images: Tensor, device: str) -> tuple[Tensor, Tensor]:
        """Float activations and labels of some images; epoch e reads view e mod the number of views."""
        view = self.views[epoch % len(self.views)]
        rows = images if self.rows is None else self.rows[images]
        activations = view[rows.to(view.device) if isinstance(view, Tensor) else rows.numpy()]
        return _on(device, activations), self.labels[images].to(device)

    def batches(self, epoch: int, parts: Iterable[Tensor], device: str) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch for each part of the images, the next one made while the current one is in use."""
        return prefetch(self.batch(epoch, images, device) for images in parts)

    def only(self, images: Tensor) -> "Examples":
        """Some of the images; nothing is read or copied."""
        rows = images if self.rows is None else self.rows[images]
        groups = None if self.groups is None else self.groups[images]
        return replace(self, labels=self.labels[images], rows=rows, groups=groups)

    def resident(self, device: str) -> "Examples":
        """The same on a GPU that has room for all views, so that no batch is copied there; else unchanged."""
        if torch.device(device).type != "cuda":
            return self
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if sum(view.nbytes for view in self.views) > _RESIDENT_SHARE * free:
            return self
        return replace(self, views=[torch.as_tensor(np.array(view), device=device) for view in self.views])


@dataclass(frozen=True)
class EpochRecord:
    """One row of the learning curves."""

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    val_auroc: float
    val_balanced_accuracy: float

    @property
    def score(self) -> float:
        """How good a training is by then: does it rank well, and does it name the right class?"""
        return (self.val_auroc + self.val_balanced_accuracy) / 2


def train_tail(
    tail: Tail,
    train: Examples,
    val: Examples,
    config: "FinetuneConfig",
    *,
    seed: int,
    device: str,
    resume: Resume | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    description: str | None = "",
    keep: Literal["best", "last"] = "best",
) -> tuple[Tail, list[EpochRecord]]:
    """Train the tail and give back its averaged weights of its best epoch on validation.

    The first `head_epochs` train the classifier alone; then every block learns, the further from the
    classifier the slower (`layer_decay`). AdamW; the rate warms up and falls as a cosine; classes are
    weighted, and groups of people as `mitigation` says; weights are averaged exponentially (EMA) and it is
    the average that is validated and kept. The best epoch has the highest `EpochRecord.score`; training
    stops early `patience` epochs after it.

    Args:
        tail: what to train; changed in place.
        train: labelled views of the training images.
        val: labelled validation images.
        config: the recipe, section `finetune` of params.yaml.
        seed: draws the order of the images and the dropout of each epoch.
        device: a torch device.
        resume: where the state is kept after each epoch, and stays at the end; None: nowhere.
        on_epoch: is told of each epoch; what it raises ends the training.
        description: what the progress bar and the log say before the epoch; None: neither says anything.
        keep: the `last` epoch is given back instead where validation must choose nothing.

    Returns:
        The averaged tail, in eval mode, and the learning curves.
    """
    tail = tail.to(device).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(tail)
    groups = _parameter_groups(tail, config)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    priors = class_frequencies(train.labels, tail.classifier.out_features)
    loss_weights = class_weights(train.labels, priors, config.class_balance).to(device)
    mitigation = GroupWeights(
        config.mitigation, train.labels, train.groups, step=config.group_step, device=device
    )
    state = State(tail, averaged, copy.deepcopy(averaged), optimizer, mitigation.weights)
    history = [EpochRecord(**record) for record in state.load(resume)] if resume else []
    require_same(
        (resume and resume.fingerprint, len(history)),
        "the processes do not begin with the same: give all machines the same params.yaml, code, images and"
        " activations, and a folder of --checkpoint that they share",
    )
    # as many batches as it takes, but none of one image, of which batch statistics would make nothing
    steps = max(1, min(math.ceil(len(train.labels) / config.batch_size), len(train.labels) // 2))

    def loss_of(logits: Tensor, labels: Tensor, images: Tensor, whole: int) -> Tensor:
        losses = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=config.label_smoothing
        )
        # weighted here: cross_entropy's own weights would also weigh the smoothing, by other classes
        return mitigation.loss(losses * loss_weights[labels], images, whole)

    gradients = _Gradients(tail, loss_of, in_pieces=config.mitigation != "group_dro")
    while not _is_over(history, config):
        epoch = len(history)
        torch.manual_seed(seed + epoch)  # dropout has no generator of its own
        order = mitigation.order(torch.Generator().manual_seed(seed + epoch))
        head_only = epoch < config.head_epochs
        tail.train()
        tail.units.train(not head_only)
        tail.units.requires_grad_(not head_only)
        gradients.renew()
        total = torch.zeros((), dtype=torch.float64, device=device)
        shares = [own_share(images) for images in order.tensor_split(steps)]
        batches = train.batches(epoch, [share.images for share in shares], device)
        name = f"{description}epoch {epoch + 1}/{config.epochs}"
        if description is not None and is_first():
            images = config.epochs * len(order)
            batches = progress(batches, name, images, step=config.batch_size, done=epoch * len(order))
        for step, (activations, labels) in enumerate(batches):
            done = (epoch * steps + step) / (config.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * learning_rate_factor(done, config.warmup)
            loss = gradients.set(activations, labels, shares[step])
            optimizer.step()
            _average(averaged, tail, decay=config.ema, updates=epoch * steps + step)
            total += loss * shares[step].whole
        measured = validate(averaged, val, priors, config, device)
        lr = optimizer.param_groups[0]["lr"]
        record = EpochRecord(epoch, lr, float(all_sum(total)) / len(order), **measured)
        history.append(record)
        log.log(
            logging.DEBUG if description is None else logging.INFO,
            "%s: training loss %.3f; validation loss %.3f, AUROC %.4f, balanced accuracy %.3f",
            name,
            record.train_loss,
            record.val_loss,
            record.val_auroc,
            record.val_balanced_accuracy,
        )
        if keep == "last" or _best(history) is record:
            state.best.load_state_dict(averaged.state_dict())
        if resume and is_first():
            state.save(resume, [asdict(record) for record in history])
        if on_epoch:
            on_epoch(record)

    if len(history) < config.epochs and description is not None:
        log.info("%sstopped early: no better epoch since epoch %d", description, _best(history).epoch + 1)
    return state.best.to(memory_format=torch.contiguous_format).eval(), history


def train_ensemble(
    task: "Task", config: "FinetuneConfig", *, seed: int, resume: Resume
) -> tuple[list[Tail], list[list[EpochRecord]]]:
    """Train `config.ensemble` tails, each from a seed of its own; gives their learning curves as well.

    Each has a checkpoint of its own, so that an interrupted run resumes in the midst of the ensemble.
    """
    tails, histories = [], []
    device = resolve_device(config.device, key="finetune.device")
    train = task.train.resident(device)
    for member in range(config.ensemble):
        own_seed = seed + member * SEEDS_APART
        tail, history = train_tail(
            task.network.tail(len(task.classes), dropout=config.dropout, seed=own_seed),
            train,
            task.val,
            config,
            seed=own_seed,
            device=device,
            resume=resume.of(f"tail-{member}"),
            description=f"tail {member + 1}/{config.ensemble}, " if config.ensemble > 1 else "",
        )
        tails.append(tail.to("cpu"))
        histories.append(history)
    return tails, histories


def _best(history: list[EpochRecord]) -> EpochRecord:
    return max(history, key=lambda record: record.score)


def _is_over(history: list[EpochRecord], config: "FinetuneConfig") -> bool:
    """All epochs are done, or the last `patience` ones brought nothing better."""
    epochs = len(history)
    return epochs == config.epochs or (epochs > 0 and epochs - 1 - _best(history).epoch >= config.patience)


class _Gradients:
    """Sets the gradients of a batch, in as many pieces as a GPU has room for."""

    def __init__(
        self, tail: Tail, loss_of: Callable[[Tensor, Tensor, Tensor, int], Tensor], *, in_pieces: bool
    ) -> None:
        """Of a tail, by what some images add to the loss of their batch.

        Args:
            tail: what learns.
            loss_of: from logits (n, K), labels (n,), images (n,) and how many the batch has.
            in_pieces: whether the loss of a batch is the sum over its pieces.
        """
        self._tail, self._loss_of, self._in_pieces = tail, loss_of, in_pieces
        self._pieces = 1

    def renew(self) -> None:
        """Other parameters of the tail learn from now on."""
        self._model = in_step(self._tail)

    def set(self, activations: Tensor, labels: Tensor, share: Share) -> Tensor:
        """Set them for this process's share of a batch; gives what it adds to the loss.

        Raises:
            DataError: a GPU has no room for it, and it cannot go through in pieces.
        """
        while True:
            self._tail.zero_grad()
            try:
                with reproducible(labels.device):
                    return self._add(activations, labels, share)
            except torch.OutOfMemoryError as error:
                self._halve(len(labels), error)

    def _add(self, activations: Tensor, labels: Tensor, share: Share) -> Tensor:
        total = torch.zeros((), device=labels.device)
        for some in torch.arange(len(labels)).tensor_split(self._pieces):
            rows = slice(int(some[0]), int(some[-1]) + 1) if len(some) else slice(0)
            with torch.autocast("cuda", torch.bfloat16, enabled=labels.is_cuda):
                logits = logits_of(self._model, activations[rows], share)
            loss = self._loss_of(logits.float(), labels[rows], share.images[rows], share.whole)
            whole: Tensor = loss * processes()  # the gradients become the mean over the processes
            whole.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
            total += loss.detach()
        return total

    def _halve(self, images: int, error: torch.OutOfMemoryError) -> None:
        at_once = images // self._pieces
        if at_once < 4 or not self._in_pieces or processes() > 1:  # noqa: PLR2004 (two pieces of two)
            raise DataError(
                f"finetune: the GPU has no room for {at_once} images; lower finetune.batch_size"
            ) from error
        self._pieces *= 2
        torch.cuda.empty_cache()
        log.warning(
            "warning: the GPU has no room for %d images; going on with %d at once, whose gradients are added"
            " up (batch norms see fewer images)",
            at_once,
            at_once // 2,
        )


def predict_logits(tail: Tail, examples: Examples, device: str) -> Tensor:
    """Logits (N, K) float32, on the CPU, of a tail in eval mode, on the first view of some images.

    Of several processes, each takes its share of the batches.
    """
    tail.eval()
    parts = torch.split(torch.arange(len(examples.labels)), _EVAL_BATCH)
    with torch.inference_mode(), reproducible(device):
        own = parts[rank() :: processes()]
        run = within_memory(tail, "finetune")
        found = [run(activations).cpu() for activations, _ in examples.batches(0, own, device)]
    return torch.cat(interleave(found, len(parts)))


def _on(device: str, activations: Activations | Tensor) -> Tensor:
    """A batch in float32 and channels last, in which convolutions on a CPU take two thirds of the time."""
    copied = torch.as_tensor(activations).to(device).float()
    return copied.contiguous(memory_format=torch.channels_last)


def learning_rate_factor(done: float, warmup: float) -> float:
    """Share of the peak learning rate: rises linearly over `warmup`, then falls as a half cosine to zero.

    Args:
        done: share of all steps, in [0, 1).
        warmup: share of the steps over which the rate rises.

    Source: Loshchilov and Hutter 2017, SGDR, eq. 5, without restarts.
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def class_frequencies(labels: Tensor, classes: int) -> NDArray[np.float64]:
    """Share of each class among the images, (K,); a class that none has counts as if one had it."""
    return frequencies_of(torch.bincount(labels, minlength=classes).tolist())


def frequencies_of(counts: Sequence[int]) -> NDArray[np.float64]:
    """As `class_frequencies`, of the number of images of each class."""
    at_least_one = np.maximum(counts, 1).astype(np.float64)
    frequencies: NDArray[np.float64] = at_least_one / at_least_one.sum()
    return frequencies


def class_weights(labels: Tensor, frequencies: NDArray[np.float64], balance: float) -> Tensor:
    """Weight of each class in the loss, (K,) float32: f_k ** -balance, scaled to a mean of 1 over the images.

    Source: King and Zeng 2001; `balance` 0 weighs images alike, 1 classes alike.
    """
    weights = torch.from_numpy(frequencies**-balance)
    return (weights / weights[labels].mean()).float()


def _parameter_groups(tail: Tail, config: "FinetuneConfig") -> list[dict[str, Any]]:
    """One group a unit and kind: the further from the classifier the slower; no decay of biases and norms."""
    groups = []
    for depth, unit in enumerate([tail.classifier, *reversed(list(tail.units))]):
        parameters = list(unit.parameters())
        shared: dict[str, Any] = {"peak_lr": config.lr * config.layer_decay**depth, "lr": 0.0}
        weights = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups += [{"params": weights} | shared] if weights else []
        groups += [{"params": others, "weight_decay": 0.0} | shared] if others else []
    return groups


def _average(averaged: nn.Module, current: nn.Module, *, decay: float, updates: int) -> None:
    """Exponential moving average of weights and batch statistics; it looks less far back in the beginning."""
    keep = min(decay, (1 + updates) / (10 + updates))
    with torch.no_grad():
        for mean, value in zip(averaged.state_dict().values(), current.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)


def validate(
    tail: Tail, val: Examples, frequencies: NDArray[np.float64], config: "FinetuneConfig", device: str
) -> dict[str, float]:
    """Loss, macro AUROC and balanced accuracy of one tail; temperature, ensemble and test views come later.

    Raises:
        DivergedError: a logit is no number.
    """
    logits = predict_logits(tail, val, device).double().numpy()
    if not np.isfinite(logits).all():
        raise DivergedError("training diverged: a logit is not finite; lower finetune.lr and re-run finetune")
    return measure_logits(logits, val.labels.numpy(), frequencies, config)


def measure_logits(
    logits: NDArray[np.float64],
    labels: NDArray[np.int64],
    frequencies: NDArray[np.float64],
    config: "FinetuneConfig",
) -> dict[str, float]:
    """What judges an epoch: `val_loss` (nats an image), `val_auroc` (macro) and `val_balanced_accuracy`.

    Means over classes are over those that some of the images have, but not all.

    Args:
        logits: (N, K), as the loss taught them: its class weights are undone here.
        labels: (N,), 0 to K - 1.
        frequencies: (K,), each class's share of the training images.
        config: how the loss and the decisions weigh the classes.

    Raises:
        DataError: all images are of one class.
    """
    probabilities = softmax(logits + prior_shift(frequencies, config.class_balance))
    named = (probabilities * decision_weights(frequencies, config.decision_balance)).argmax(1)
    area = macro_auroc(probabilities, labels)
    if area is None:
        raise DataError("all validation images are of one class: nothing can be told apart; see ingest.split")
    recalls = [recall(named, labels, index).value for index in np.unique(labels)]
    return {
        "val_loss": float(-np.log(probabilities[np.arange(len(labels)), labels]).mean()),
        "val_auroc": area,
        "val_balanced_accuracy": float(np.mean(np.array(recalls, dtype=float))),
    }
