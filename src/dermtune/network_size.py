"""How large a network is: parameters, with and without weight sharing, and multiply-adds."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dermtune.backbone import Tail, Trunk


@dataclass(frozen=True)
class Size:
    """How large a network is."""

    parameters: int
    trained: int
    unshared: int
    """Parameters if each place of a convolution's output, and each token, had weights of its own."""
    multiply_adds: int
    """For one image, forward."""
    trained_multiply_adds: int
    """Those of them that the tail takes."""


def size_of(trunk: Trunk, tail: Tail, *, input_size: int) -> Size:
    """Count what a network has and does, with its frozen layers.

    Multiply-adds are those of convolutions, linear layers and attention, as torch counts them.
    """
    more: list[int] = []

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        channels = len(next(layer.parameters()))  # of its output: the weight's first axis
        more.append(_numbers(layer) * (output[0].numel() // channels - 1))

    layers = [one for one in nn.ModuleList([trunk, tail]).modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    was_training = tail.training
    with torch.inference_mode():
        with FlopCounterMode(display=False) as kept:
            activations = trunk(torch.zeros(1, 3, input_size, input_size))
        with FlopCounterMode(display=False) as trained:
            tail.eval()(activations)
    tail.train(was_training)
    for hook in hooks:
        hook.remove()
    parameters = _numbers(trunk) + _numbers(tail)
    work, of_tail = (count.get_total_flops() // 2 for count in (kept, trained))  # two to a multiply-add
    return Size(parameters, _numbers(tail), parameters + sum(more), work + of_tail, of_tail)


def _numbers(module: nn.Module) -> int:
    return sum(one.numel() for one in module.parameters())
