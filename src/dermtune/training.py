"""Train the tail on stored activations: the loop, its learning rates, its loss and its checkpoint."""

import copy
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from dermtune.backbone import Tail
from dermtune.errors import DataError
from dermtune.metrics import auroc, recall
from dermtune.progress import progress
from dermtune_bundle.files import atomic_path

if TYPE_CHECKING:
    from dermtune.stages.finetune import FinetuneConfig

log = logging.getLogger(__name__)

Activations = NDArray[np.floating]
_EVAL_BATCH = 64


@dataclass(frozen=True)
class Examples:
    """Labelled activations, memory-mapped: one or more views of the same images."""

    views: Sequence[Activations]
    """Each (N, C, h, w)."""
    labels: Tensor
    """(N,) int64 class indices."""

    def batch(self, epoch: int, rows: Tensor, device: str) -> tuple[Tensor, Tensor]:
        """Float activations and labels of some images; epoch e reads view e mod the number of views."""
        view = self.views[epoch % len(self.views)]
        return _on(device, view[rows.numpy()]), self.labels[rows].to(device)


@dataclass(frozen=True)
class EpochRecord:
    """One row of the learning curves."""

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    val_auroc: float
    val_balanced_accuracy: float


def train_tail(
    tail: Tail,
    train: Examples,
    val: Examples,
    config: "FinetuneConfig",
    *,
    seed: int,
    device: str,
    checkpoint: Path,
    fingerprint: str,
) -> tuple[Tail, list[EpochRecord]]:
    """Train the tail and give back its averaged weights of the epoch with the best validation AUROC.

    The first `head_epochs` train the classifier alone; then every block learns, the further from the
    classifier the slower (`layer_decay`). AdamW; the rate warms up and falls as a cosine; classes are
    weighted; weights are averaged exponentially (EMA) and it is the average that is validated and kept.
    Training stops early after `patience` epochs without a better validation AUROC.

    Args:
        tail: what to train; changed in place.
        train: labelled views of the training images.
        val: labelled validation images.
        config: the recipe, section `finetune` of params.yaml.
        seed: draws the order of the images and the dropout of each epoch.
        device: a torch device.
        checkpoint: file that keeps the state after each epoch; removed at the end.
        fingerprint: of everything that decides the result; a checkpoint of another one is not resumed.

    Returns:
        The averaged tail, in eval mode, and the learning curves.
    """
    tail = tail.to(device).to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(tail)
    groups = _parameter_groups(tail, config)
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    loss_weights = class_weights(train.labels, tail.classifier.out_features, config.class_balance).to(device)
    state = _State(tail, averaged, copy.deepcopy(averaged), optimizer)
    history = state.resume(checkpoint, fingerprint)
    steps = math.ceil(len(train.labels) / config.batch_size)

    for epoch in range(len(history), config.epochs):
        torch.manual_seed(seed + epoch)  # dropout has no generator of its own
        order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed + epoch))
        head_only = epoch < config.head_epochs
        tail.train()
        tail.units.train(not head_only)
        tail.units.requires_grad_(not head_only)
        total = 0.0
        batches = progress(order.tensor_split(steps), f"epoch {epoch + 1}/{config.epochs}", steps)
        for step, rows in enumerate(batches):
            activations, labels = train.batch(epoch, rows, device)
            done = (epoch * steps + step) / (config.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * learning_rate_factor(done, config.warmup)
            losses = functional.cross_entropy(
                tail(activations), labels, reduction="none", label_smoothing=config.label_smoothing
            )
            # weighted here: cross_entropy's own weights would also weigh the smoothing, by other classes
            loss = (losses * loss_weights[labels]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
            optimizer.step()
            _average(averaged, tail, decay=config.ema, updates=epoch * steps + step)
            total += loss.item() * len(rows)
        measured = _validate(averaged, val, device)
        record = EpochRecord(epoch, optimizer.param_groups[0]["lr"], total / len(order), **measured)
        history.append(record)
        log.info(
            "epoch %d/%d: training loss %.3f; validation loss %.3f, AUROC %.4f, balanced accuracy %.3f",
            epoch + 1,
            config.epochs,
            record.train_loss,
            record.val_loss,
            record.val_auroc,
            record.val_balanced_accuracy,
        )
        best = max(history, key=lambda past: past.val_auroc)
        if best is record:
            state.best.load_state_dict(averaged.state_dict())
        elif epoch - best.epoch >= config.patience:
            log.info("stopped early: no better validation AUROC since epoch %d", best.epoch + 1)
            break
        state.save(checkpoint, fingerprint, history)

    checkpoint.unlink(missing_ok=True)
    return state.best.to(memory_format=torch.contiguous_format).eval(), history


def predict_logits(tail: Tail, activations: Activations, device: str) -> Tensor:
    """Logits (N, K) float32, on the CPU, of a tail in eval mode."""
    tail.eval()
    starts = range(0, len(activations), _EVAL_BATCH)
    with torch.inference_mode():
        return torch.cat([tail(_on(device, activations[i : i + _EVAL_BATCH])).cpu() for i in starts])


def _on(device: str, activations: Activations) -> Tensor:
    """A batch in float32 and channels last, in which convolutions on a CPU take two thirds of the time."""
    copied = torch.from_numpy(np.array(activations)).to(device, torch.float32)
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


def class_weights(labels: Tensor, classes: int, balance: float) -> Tensor:
    """Weight of each class in the loss, (K,) float32: n_k ** -balance, scaled to a mean of 1 over the images.

    Source: King and Zeng 2001; `balance` 0 weighs images alike, 1 classes alike.
    """
    weights = torch.bincount(labels, minlength=classes).clamp(min=1).double() ** -balance
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


def _validate(tail: Tail, val: Examples, device: str) -> dict[str, float]:
    """Loss, macro AUROC and balanced accuracy; means are over the classes that validation has.

    Raises:
        DataError: training diverged.
    """
    logits = predict_logits(tail, val.views[0], device)
    if not logits.isfinite().all():
        raise DataError("training diverged: a logit is not finite; lower finetune.lr and re-run finetune")
    probabilities, labels = logits.double().softmax(1).numpy(), val.labels.numpy()
    present = [index for index in range(logits.shape[1]) if 0 < (labels == index).sum() < len(labels)]
    areas = [auroc(probabilities[:, index], labels == index).value for index in present]
    recalls = [recall(probabilities, labels, index).value for index in present]
    return {
        "val_loss": float(functional.cross_entropy(logits, val.labels)),
        "val_auroc": float(np.mean(np.array(areas, dtype=float))),
        "val_balanced_accuracy": float(np.mean(np.array(recalls, dtype=float))),
    }


@dataclass(frozen=True)
class _State:
    """What a checkpoint keeps, as safetensors: nothing is pickled."""

    tail: Tail
    averaged: Tail
    best: Tail
    optimizer: torch.optim.Optimizer

    def save(self, path: Path, fingerprint: str, history: list[EpochRecord]) -> None:
        tensors = {  # safetensors keeps no memory format
            f"{part}.{name}": value.contiguous().clone()
            for part, module in self._modules().items()
            for name, value in module.state_dict().items()
        }
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in values.items()}
        facts = {"fingerprint": fingerprint, "history": json.dumps([asdict(record) for record in history])}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=facts)

    def resume(self, path: Path, fingerprint: str) -> list[EpochRecord]:
        """Load a checkpoint of the same run where there is one; gives its learning curves so far."""
        if not path.is_file():
            return []
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        except (OSError, SafetensorError) as error:
            log.warning("warning: %s cannot be read and is not resumed: %s", path, error)
            return []
        if facts.get("fingerprint") != fingerprint:
            log.info("%s is of another run and is not resumed", path)
            return []
        for part, module in self._modules().items():
            module.load_state_dict({name: tensors[f"{part}.{name}"] for name in module.state_dict()})
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                # laid out as its parameter is: the fused optimizer goes through memory, not through indices
                laid_out = value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value  # noqa: PLR2004
                kept.setdefault(int(index), {})[key] = laid_out
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        history = [EpochRecord(**record) for record in json.loads(facts["history"])]
        log.info("resumed after epoch %d", len(history))
        return history

    def _modules(self) -> dict[str, Tail]:
        return {"tail": self.tail, "averaged": self.averaged, "best": self.best}
