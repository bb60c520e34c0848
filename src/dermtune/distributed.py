"""One training by several processes, as torchrun starts them: each learns from its share of every batch.

The weights are those that one process would reach with the whole batches, but for the rounding of sums: the
processes draw alike, weigh alike, normalise by the statistics of the whole batch and know all validation
images. A tail without batch norms is in step by its gradients alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from dermtune.backbone import Tail
from dermtune.errors import ConfigError, DataError

T = TypeVar("T")


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the other processes of torchrun, each with a GPU of its own, or on CPUs; alone where it is not it.

    Args:
        device: as `trunk.resolve_device` gives it.

    Raises:
        ConfigError: there are fewer GPUs on this machine than processes.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started {os.environ['LOCAL_WORLD_SIZE']} processes on a machine with"
                f" {torch.cuda.device_count()} GPUs; give --nproc-per-node no more than that"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if is_cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Is this the process that writes and talks?"""
    return rank() == 0


class Share(NamedTuple):
    """What one process has of a batch."""

    images: Tensor
    """(n,) of the whole batch's (N,)."""
    first: int
    """Where they begin in it."""
    whole: int
    """N."""


def own_share(images: Tensor) -> Share:
    """This process's share of a batch (N,); alone, all of it."""
    parts = images.tensor_split(processes())
    return Share(parts[rank()], sum(map(len, parts[: rank()])), len(images))


def all_sum(values: Tensor) -> Tensor:
    """The sum over the processes of a tensor of one shape, without gradients."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def interleave(own: list[T], count: int) -> list[T]:
    """All things of a list of `count`, of which process r of P made number r, r + P, …, in their order."""
    if not dist.is_initialized():
        return own
    gathered: list[Any] = [None] * processes()
    dist.all_gather_object(gathered, own)
    return [gathered[number % processes()][number // processes()] for number in range(count)]


def require_same(value: object, otherwise: str) -> None:
    """Go on together, if all processes have the same.

    Raises:
        DataError: on all of them, with what to say `otherwise`.
    """
    if len(set(interleave([value], processes()))) > 1:
        raise DataError(f"finetune: {otherwise}")


def in_step(tail: Tail) -> nn.Module:
    """The tail, whose gradients become the mean over the processes'; alone, the tail as it is.

    To be called again when other parameters learn. What it gives is to be called by `logits_of`.
    """
    return (
        DistributedDataParallel(_Replica(tail), forward_sync_buffers=False) if dist.is_initialized() else tail
    )


def logits_of(model: nn.Module, activations: Tensor, share: Share) -> Tensor:
    """Logits (n, K) of a share of a batch, by what `in_step` gave."""
    arguments = (share.first, share.whole) if isinstance(model, DistributedDataParallel) else ()
    logits: Tensor = model(activations, *arguments)
    return logits


class _Replica(nn.Module):
    """A tail that knows its place in the batch: it draws dropout for the whole, and takes its own rows."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.tail = tail
        for module in tail.modules():
            if isinstance(module, _BatchNorm):
                module.forward = partial(_normalise, module)  # type: ignore[method-assign]  # of this one alone

    def forward(self, activations: Tensor, first: int, whole: int) -> Tensor:
        """From activations (n, C, h, w) to logits (n, K)."""
        features = self.tail.units(activations).mean((2, 3))
        share = self.tail.dropout.p
        if self.tail.training and share:
            drawn = features.new_empty(whole, features.shape[1]).bernoulli_(1 - share)
            features = features * drawn[first : first + len(features)].div_(1 - share)
        logits: Tensor = self.tail.classifier(features)
        return logits


class _Sum(torch.autograd.Function):
    """`all_sum`, with gradients: each process's part is in the sum of all."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:  # noqa: ANN401 (torch's context)
        return all_sum(values)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401 (as above)
        return all_sum(gradient)


def _sum(values: Tensor) -> Tensor:
    found: Tensor = _Sum.apply(values)
    return found


def _normalise(norm: Any, values: Tensor) -> Tensor:  # noqa: ANN401 (torch's and timm's, which activates as well)
    """A batch norm's forward, by the statistics of the whole batch; torch's SyncBatchNorm needs a GPU."""
    if not norm.training:
        found: Tensor = type(norm).forward(norm, values)
        return found
    shape = (1, -1, *(1,) * (values.ndim - 2))
    axes = [0, *range(2, values.ndim)]
    precise = values.float()
    count = all_sum(values.new_tensor(values.numel() // values.shape[1], dtype=torch.float64)).float()
    mean = _sum(precise.sum(axes)) / count
    apart = precise - mean.view(shape)
    variance = _sum((apart**2).sum(axes)) / count
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1).clamp(min=1), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    found = (apart * scale.view(shape) + norm.bias.view(shape)).to(values.dtype)
    if hasattr(norm, "act"):
        found = norm.act(norm.drop(found))
    return found
