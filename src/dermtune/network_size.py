"""How large a network is: parameters, with and without weight sharing, and multiply-adds."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dermtune.backbone import Tail, Trunk


@dataclass(frozen=True)
class Size:
    """How large a network is."""

    parameters: int
    trained: int
    unshared: int
    """Parameters if each place of a convolution's output had weights of its own."""
    multiply_adds: int
    """For one image, forward."""
    trained_multiply_adds: int
    """Those of them that the tail takes."""


def size_of(trunk: Trunk, tail: Tail, *, input_size: int) -> Size:
    """Count what a network has and does, with its frozen layers.

    A layer other than a convolution or a linear one counts its parameters alone.
    """
    counted = {"unshared": 0, "multiply_adds": 0, "trained_multiply_adds": 0}

    def count(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        own = sum(parameter.numel() for parameter in layer.parameters())
        work, places = 0, 1
        if isinstance(layer, nn.Conv2d | nn.Linear):
            channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
            places = output[0].numel() // channels
            work = layer.weight.numel() * places
        counted["unshared"] += own * places
        counted["multiply_adds"] += work
        counted["trained_multiply_adds"] += work if layer in of_tail else 0

    of_tail = {layer for layer in tail.modules() if not [*layer.children()]}
    layers = of_tail | {layer for layer in trunk.modules() if not [*layer.children()]}
    hooks = [layer.register_forward_hook(count) for layer in layers]
    was_training = tail.training
    with torch.inference_mode():
        tail.eval()(trunk(torch.zeros(1, 3, input_size, input_size)))
    tail.train(was_training)
    for hook in hooks:
        hook.remove()
    trained, kept = (sum(one.numel() for one in module.parameters()) for module in (tail, trunk))
    return Size(parameters=kept + trained, trained=trained, **counted)
