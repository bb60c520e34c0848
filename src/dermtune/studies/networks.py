"""Eight networks for one task, from a plane through raw pixels to a pretrained network trained whole.

All end in one linear layer on the mean of what they see (`backbone.Tail`), so that one loop trains all.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, get_args

import torch
from torch import Tensor, nn

from dermtune.backbone import Backbone, Tail, Trunk, load_backbone, untrained_backbone
from dermtune.config import BackboneConfig
from dermtune.studies import NetworkName

NAMES: Final[tuple[NetworkName, ...]] = get_args(NetworkName)
_HIDDEN, _CHANNELS = (256, 128), (16, 32, 64, 128)


@dataclass(frozen=True)
class Network:
    """A network that is to learn the task."""

    name: NetworkName
    title: str
    trunk: Trunk
    """What of it stays as it is, at least the normalisation of pixels."""
    tail: Callable[[int], Tail]
    """From a seed to what of it learns."""
    is_pretrained: bool


def make_networks(config: BackboneConfig, *, classes: int, dropout: float) -> list[Network]:
    """The eight, in the order of NAMES.

    Args:
        config: the pretrained network, its cut, and the size of the images.
        classes: K.
        dropout: before the last layer of those that see features.

    Raises:
        ConfigError: as `load_backbone`.
    """
    whole, cut = load_backbone(config.model_copy(update={"cut": 0})), load_backbone(config)
    pixels, size = whole.trunk, config.input_size
    inputs = 3 * size**2
    frozen = pixels.followed_by(copy.deepcopy(whole.tail_units))

    def own(units: Callable[[], list[nn.Module]], features: int) -> Callable[[int], Tail]:
        return lambda seed: _drawn(units, features, classes, seed=seed)

    def pretrained(network: Backbone) -> Callable[[int], Tail]:
        return lambda seed: network.tail(classes, dropout=dropout, seed=seed)

    def untrained(seed: int) -> Tail:
        network = untrained_backbone(config.model_copy(update={"cut": 0}), seed=seed)
        return network.tail(classes, dropout=dropout, seed=seed)

    def head(seed: int) -> Tail:
        return Tail([], whole.features, classes, dropout=dropout, seed=seed)

    return [
        Network(name, title, trunk, tail, is_pretrained=is_pretrained)
        for name, (title, trunk, tail, is_pretrained) in zip(
            NAMES,
            (
                ("linear model on pixels", pixels, own(lambda: [_Flat()], inputs), False),
                ("fully connected", pixels, own(lambda: _fully_connected(inputs), _HIDDEN[-1]), False),
                ("small CNN", pixels, own(lambda: _cnn(norm=False), _CHANNELS[-1]), False),
                ("small CNN, batch norm", pixels, own(lambda: _cnn(norm=True), _CHANNELS[-1]), False),
                (f"{config.name}, untrained", pixels, untrained, False),
                ("pretrained, frozen", frozen, head, True),
                (f"pretrained, tail after block {config.cut}", cut.trunk, pretrained(cut), True),
                ("pretrained, all trained", pixels, pretrained(whole), True),
            ),
            strict=True,
        )
    ]


class _Flat(nn.Module):
    """Pixels (N, 3, S, S) as features (N, 3 S², 1, 1), of which each place has its own."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :, None, None]


def _fully_connected(inputs: int) -> list[nn.Module]:
    units: list[nn.Module] = [nn.Flatten()]
    for width in _HIDDEN:
        units += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return [*units, _Flat()]


def _cnn(*, norm: bool) -> list[nn.Module]:
    units, before = [], 3
    for channels in _CHANNELS:
        convolution = nn.Conv2d(before, channels, 3, padding=1, bias=not norm)
        normed = [nn.BatchNorm2d(channels)] if norm else []
        units.append(nn.Sequential(convolution, *normed, nn.ReLU(), nn.MaxPool2d(2)))
        before = channels
    return [*units]


def _drawn(units: Callable[[], list[nn.Module]], features: int, classes: int, *, seed: int) -> Tail:
    """A tail of layers with first weights as torch draws them, which it does from global state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tail(units(), features, classes, dropout=0.0, seed=seed)
