"""Pictures that excite a channel most, made by climbing its gradient from a plain one.

Source: Olah, Mordvintsev and Schubert 2017, Feature visualization, Distill. The picture is kept as waves, of
which long ones move as easily as short ones; its colours are those of the data, decorrelated; and it is
turned, moved and scaled a little at each step, so that nothing is found that holds for single pixels alone.
"""

import base64
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dermtune.backbone import Trunk
from dermtune.progress import progress
from dermtune.studies import MicroscopeConfig
from dermtune.studies.channels import Layer, activations_of
from dermtune.studies.kept import Kept
from dermtune_bundle.pictures import to_jpeg

_RATE, _FIRST, _STEEP = 0.03, 0.05, 1.5
_TURN, _SCALE, _MOVE = 0.17, 0.1, 0.06  # radians; share of the size; the same
_EDGE = 0.02  # colours nearer to black or white than this count as so near


@dataclass(frozen=True)
class Palette:
    """Which colours images have, and which go together."""

    middle: Tensor
    """(3,) the mean colour, as its logit."""
    mixing: Tensor
    """(3, 3) from three numbers that are independent to a logit of red, green and blue."""

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> Self:
        """The palette of images (N, S, S, 3)."""
        colors = np.clip(pixels.reshape(-1, 3)[:: max(1, pixels.size // 300_000)] / 255, _EDGE, 1 - _EDGE)
        logits = np.log(colors / (1 - colors))
        values, vectors = np.linalg.eigh(np.cov(logits.T))
        mixing = vectors * np.sqrt(np.maximum(values, 1e-6))
        return cls(
            torch.from_numpy(logits.mean(0)).float(), torch.from_numpy(np.ascontiguousarray(mixing)).float()
        )

    def paint(self, drawing: Tensor) -> Tensor:
        """From independent numbers (N, 3, S, S) to pixels (N, 3, S, S) in [0, 255]."""
        mixed = torch.einsum("oc,nchw->nohw", self.mixing, drawing) + self.middle[:, None, None]
        return 255 * torch.sigmoid(mixed)


def visualize(
    layers: Sequence[Layer],
    trunk: Trunk,
    channels: Sequence[int],
    palette: Palette,
    *,
    size: int,
    steps: int,
    seed: int,
) -> tuple[NDArray[np.uint8], list[float]]:
    """Pictures that excite some channels of the last of some layers.

    The mean of the channel over all places climbs, before the layer's own non-linearity: behind it there may
    be no slope to climb.

    Args:
        layers: from the image up to the layer.
        trunk: whose normalisation of pixels it is.
        channels: n of them.
        palette: of the pictures.
        size: their side, in pixels.
        steps: of the climb.
        seed: of the first picture and of how it is moved.

    Returns:
        uint8 (n, size, size, 3), and the largest activation of each one's channel.
    """
    if not channels:
        return np.empty((0, size, size, 3), np.uint8), []
    generator = torch.Generator().manual_seed(seed)
    own = [*range(len(channels))]
    climbed = [*layers[:-1], _without_last_bend(layers, trunk, size)]
    # the longer a wave, the more an equal step moves it; somewhat more than in images of the world, for what
    # climbs fastest is fine noise
    along = torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size)[None].square()
    weight = (along.sqrt().clamp(min=1 / size) * size) ** -_STEEP
    waves = _FIRST * torch.randn(len(own), 3, *weight.shape, 2, generator=generator)
    waves.requires_grad_()
    optimizer = torch.optim.Adam([waves], lr=_RATE)

    def draw() -> Tensor:
        spectrum = torch.view_as_complex(waves) * weight * size
        return palette.paint(torch.fft.irfft2(spectrum, s=(size, size), norm="ortho"))

    for _ in range(steps):
        optimizer.zero_grad()
        moved = _moved(draw(), generator)
        *_, found = activations_of(climbed, trunk, moved)
        (-found[own, list(channels)].mean((1, 2)).sum()).backward()  # type: ignore[no-untyped-call]  # as in training.py
        optimizer.step()
    with torch.inference_mode():
        pictures = draw().round()
        *_, found = activations_of(layers, trunk, pictures)
    largest: list[float] = found[own, list(channels)].amax((1, 2)).tolist()
    return pictures.permute(0, 2, 3, 1).to(torch.uint8).numpy(), largest


def _moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Turned, scaled and moved at random, all alike."""
    angle, scale, x, y = (2 * torch.rand(4, generator=generator) - 1).tolist()
    turn, zoom = torch.tensor(_TURN * angle), 1 + _SCALE * scale
    row = torch.stack([turn.cos() * zoom, -turn.sin() * zoom, torch.tensor(2 * _MOVE * x)])
    column = torch.stack([turn.sin() * zoom, turn.cos() * zoom, torch.tensor(2 * _MOVE * y)])
    matrix = torch.stack([row, column]).expand(len(pictures), 2, 3)
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def _without_last_bend(layers: Sequence[Layer], trunk: Trunk, size: int) -> Layer:
    """The last layer, without the non-linearity that it ends with, where it does."""
    last = layers[-1]
    units = copy.deepcopy(last.units)
    seen: list[tuple[str, Tensor]] = []
    bends = [(name, part) for name, part in units.named_modules() if _is_bend(part)]
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: seen.append((name, output.clone())))
        for name, part in bends
    ]
    with torch.inference_mode():
        *_, found = activations_of(
            [*layers[:-1], Layer(last.name, units, last.is_frozen)],
            trunk,
            torch.full((1, 3, size, size), 99.0),
        )
    for hook in hooks:
        hook.remove()
    if seen and seen[-1][1].shape == found.shape and torch.equal(seen[-1][1], found):
        parent, _, name = seen[-1][0].rpartition(".")
        setattr(units.get_submodule(parent), name, nn.Identity())
    return Layer(last.name, units, last.is_frozen)


def _is_bend(part: nn.Module) -> bool:
    return "activation" in type(part).__module__ and not [*part.children()]


def paint_channels(
    layers: Sequence[Layer],
    trunk: Trunk,
    channels: Sequence[Sequence[int]],
    pixels: NDArray[np.uint8],
    config: MicroscopeConfig,
    *,
    seed: int,
    kept: Kept,
) -> list[list[dict[str, Any]]]:
    """Pictures that excite channels of each layer but the stem, whose filters can be seen as they are.

    Args:
        layers: from the image to the classifier.
        trunk: whose normalisation of pixels it is.
        channels: of each layer; of the first of these a picture is made.
        pixels: images (N, S, S, 3) whose colours the pictures have.
        config: how many, how large, and in how many steps.
        seed: of the first pictures.
        kept: what was made before.

    Returns:
        A list a layer, as JSON knows it: `picture` (JPEG in base64) and `value`, as `visualize` gives them.
    """
    palette = Palette.of(pixels)
    found: list[list[dict[str, Any]]] = [[]]
    for depth in progress(range(1, len(layers)), "pictures", len(layers) - 1):
        paint = partial(
            _painted,
            layers[: depth + 1],
            trunk,
            channels[depth][: config.painted],
            palette,
            config,
            seed=seed + depth,
        )
        found.append(kept.get(f"pictures {depth}", paint))
    return found


def _painted(
    layers: Sequence[Layer],
    trunk: Trunk,
    channels: Sequence[int],
    palette: Palette,
    config: MicroscopeConfig,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    pictures, values = visualize(
        layers, trunk, channels, palette, size=config.picture, steps=config.steps, seed=seed
    )
    return [
        {"picture": base64.b64encode(to_jpeg(picture)).decode(), "value": value}
        for picture, value in zip(pictures, values, strict=True)
    ]
