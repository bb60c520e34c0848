"""What a network's channels respond to: its layers, how strongly each channel answers, and from where.

A layer is what lies between two places at which one can look: the stem, a block, the last convolution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn

from dermtune.backbone import Tail, Trunk
from dermtune.chain import require_maps
from dermtune.metrics import Sampled, auroc, estimate, macro, resample
from dermtune.progress import progress
from dermtune.studies import MicroscopeConfig
from dermtune.studies.images import Images

_BATCH = 16
_FIELD_IMAGES = 4
_MASS = 0.9  # of the gradient, that a receptive field holds


@dataclass(frozen=True)
class Layer:
    """A part of the network, with what normalises and bends its output."""

    name: str
    """`stem`, `block 1`, …, `head`."""
    units: nn.Sequential
    is_frozen: bool


@dataclass(frozen=True)
class Responses:
    """How strongly the channels of one layer answer to N images at most, and where in them."""

    values: NDArray[np.float32]
    """(N, C) the largest activation of each."""
    places: NDArray[np.int32]
    """(N, C) where it is, as y · w + x."""
    shape: tuple[int, int]
    """(h, w) of the layer's maps."""


def layers_of(trunk: Trunk, tail: Tail) -> list[Layer]:
    """The layers, from the image to the classifier, in eval mode and without gradients of weights.

    What holds no convolution, such as a normalisation, belongs to the layer before it.

    Raises:
        ConfigError: they are a transformer's.
    """
    require_maps([*trunk.units, *tail.units], what="dermtune study microscope")
    groups: list[list[nn.Module]] = []
    frozen = []
    for number, unit in enumerate([*trunk.units, *tail.units]):
        if not groups or any(isinstance(part, nn.Conv2d) for part in unit.modules()):
            groups.append([])
            frozen.append(number < len(trunk.units))
        groups[-1].append(unit)
    layers = []
    for number, (group, is_frozen) in enumerate(zip(groups, frozen, strict=True)):
        is_head = number == len(groups) - 1 and isinstance(group[0], nn.Conv2d)
        name = "stem" if number == 0 else "head" if is_head else f"block {number}"
        layers.append(
            Layer(name, nn.Sequential(*group).eval().requires_grad_(requires_grad=False), is_frozen)
        )
    return layers


def activations_of(layers: Sequence[Layer], trunk: Trunk, pixels: Tensor) -> Iterator[Tensor]:
    """The output (N, C, h, w) of each layer, one after the other.

    Args:
        layers: as `layers_of` gives them.
        trunk: whose normalisation of pixels it is.
        pixels: (N, 3, S, S) in [0, 255].
    """
    found = (pixels - trunk.mean) / trunk.std
    for layer in layers:
        found = layer.units(found)
        yield found


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Images (N, S, S, 3) as the network takes them: float (N, 3, S, S)."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float()


def measure_responses(
    layers: Sequence[Layer], trunk: Trunk, pixels: NDArray[np.uint8], *, description: str
) -> list[Responses]:
    """How strongly each channel of each layer answers to images.

    Args:
        layers: as `layers_of` gives them.
        trunk: whose normalisation of pixels it is.
        pixels: (N, S, S, 3).
        description: what the progress bar says.
    """
    values: list[list[NDArray[np.float32]]] = [[] for _ in layers]
    places: list[list[NDArray[np.int32]]] = [[] for _ in layers]
    shapes = [(0, 0)] * len(layers)
    tops = range(0, len(pixels), _BATCH)
    with torch.inference_mode():
        for top in progress(tops, description, len(pixels), step=_BATCH):
            batch = as_tensor(pixels[top : top + _BATCH])
            for depth, found in enumerate(activations_of(layers, trunk, batch)):
                largest = found.flatten(2).max(2)
                values[depth].append(largest.values.numpy())
                places[depth].append(largest.indices.numpy().astype(np.int32))
                shapes[depth] = (found.shape[2], found.shape[3])
    return [
        Responses(np.concatenate(own), np.concatenate(where), shape)
        for own, where, shape in zip(values, places, shapes, strict=True)
    ]


def class_aurocs(
    values: NDArray[np.floating], labels: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """How well each column alone tells each class from the others: AUROC (C, K), NaN where undefined.

    Args:
        values: (N, C).
        labels: (N,) of 0 to K - 1.
        classes: K.

    Source: Hanley and McNeil 1982, The meaning and use of the area under a ROC curve: it is the U of Mann and
    Whitney, divided by the number of pairs.
    """
    ranks = rankdata(values, axis=0)
    found = np.full((values.shape[1], classes), np.nan)
    for label in range(classes):
        own = labels == label
        positives, negatives = int(own.sum()), int((~own).sum())
        if positives and negatives:
            wins = ranks[own].sum(0) - positives * (positives + 1) / 2
            found[:, label] = wins / (positives * negatives)
    return found


def strongest(values: NDArray[np.floating], lesions: NDArray[np.object_], count: int) -> NDArray[np.intp]:
    """Rows with the largest values, the largest first, at most one of a lesion.

    Args:
        values: (N,).
        lesions: (N,).
        count: of rows at most.
    """
    order = np.argsort(-values, kind="stable")
    _, first = np.unique(lesions[order].astype(str), return_index=True)
    return order[np.sort(first)[:count]]


def receptive_fields(layers: Sequence[Layer], trunk: Trunk, pixels: NDArray[np.uint8]) -> list[int]:
    """Side, in pixels, of what a unit in the middle of each layer sees of an image: where its gradient lies.

    The smallest square around the unit's place that holds 90% of the absolute gradient of half its squared
    activations, summed over channels, images and colours. What a unit could see by its layers' strides is
    far more.

    Args:
        layers: as `layers_of` gives them.
        trunk: whose normalisation of pixels it is.
        pixels: (N, S, S, 3).

    Source: Luo et al. 2016, Understanding the effective receptive field in deep convolutional networks.
    """
    image = as_tensor(pixels).requires_grad_()
    size = pixels.shape[1]
    sides = []
    for found in activations_of(layers, trunk, image):
        y, x = (side // 2 for side in found.shape[2:])
        (gradient,) = torch.autograd.grad(found[:, :, y, x].pow(2).sum() / 2, image, retain_graph=True)
        mass = gradient.abs().sum((0, 1)).numpy()
        center = [
            (place + 0.5) * size / side - 0.5 for place, side in zip((y, x), found.shape[2:], strict=True)
        ]
        apart = np.abs(np.indices(mass.shape) - np.reshape(center, (2, 1, 1))).max(0)
        order = np.argsort(apart, axis=None, kind="stable")
        held = np.cumsum(mass.ravel()[order])
        half = apart.ravel()[order][min(int(np.searchsorted(held, _MASS * held[-1])), len(held) - 1)]
        sides.append(min(size, int(np.ceil(2 * half)) + 1))
    return sides


def box_around(place: int, shape: tuple[int, int], side: int, size: int) -> tuple[int, int]:
    """Top and left of the square that a unit sees, moved into the image where it lies beyond it.

    Args:
        place: of the unit, y · w + x.
        shape: (h, w) of its layer's maps.
        side: of the square, in pixels.
        size: of the image.
    """
    centers = ((where + 0.5) * size / of for where, of in zip(divmod(place, shape[1]), shape, strict=True))
    top, left = (int(min(max(round(center - side / 2), 0), size - side)) for center in centers)
    return top, left


def first_filters(layers: Sequence[Layer]) -> NDArray[np.uint8]:
    """The weights of the first convolution as pictures: (C, k, k, 3), each stretched around grey."""
    convolution = next(part for part in layers[0].units.modules() if isinstance(part, nn.Conv2d))
    weights = convolution.weight.detach().permute(0, 2, 3, 1).numpy()
    largest = np.maximum(np.abs(weights).max((1, 2, 3), keepdims=True), 1e-12)
    found: NDArray[np.uint8] = np.round(127.5 + 127.5 * weights / largest).astype(np.uint8)
    return found


def measure_channels(
    layers: Sequence[Layer],
    trunk: Trunk,
    train: Images,
    val: Images,
    config: MicroscopeConfig,
    *,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """The channel of each layer that tells each class best on training, and how well it does on validation.

    Args:
        layers: as `layers_of` gives them.
        trunk: whose normalisation of pixels it is.
        train: by which channels are chosen, and what excites them is found.
        val: by which they are judged.
        config: how many channels and patches are to be shown.
        draws: of the bootstrap over lesions.
        seed: of the draws, the same ones for all layers.

    Returns:
        As JSON knows it. `table`: a row a layer and class: layer, depth, frozen, field (pixels a side that a
        unit sees), label, channel, trained (AUROC on training), auroc, low, high (on validation). `depths`: a
        row a layer: the mean of `auroc` over classes, with its interval. `shown`: each layer's channels to
        show, with their class and the training images (rows, values, places) that excite them most. `usual`:
        mean and deviation of each channel's largest activation. `shapes`: (C, h, w) of each layer's output.
    """
    fields = receptive_fields(layers, trunk, train.pixels[:: -(-len(train.pixels) // _FIELD_IMAGES)])
    on_train, on_val = (
        measure_responses(layers, trunk, images.pixels, description=f"layers, {what}")
        for images, what in ((train, "training"), (val, "validation"))
    )
    groups = val.table["group_id"].to_numpy(object)
    table, depths, shown = [], [], []
    for depth, (layer, learned, held) in enumerate(zip(layers, on_train, on_val, strict=True)):
        areas = class_aurocs(learned.values, train.labels, len(train.classes))
        best = {int(label): int(areas[:, label].argmax()) for label in np.flatnonzero(~np.isnan(areas[0]))}
        metrics = {
            label: auroc(held.values[:, at].astype(float), val.labels == label) for label, at in best.items()
        }
        sampled = resample(metrics, groups, draws=draws, rng=np.random.default_rng(seed))
        about = {"layer": layer.name, "depth": depth, "frozen": layer.is_frozen, "field": fields[depth]}
        table += [
            about
            | {"label": train.classes[label], "channel": at, "trained": float(areas[at, label])}
            | _judged(sampled[label])
            for label, at in best.items()
        ]
        depths.append(about | _judged(macro(list(sampled.values()))))
        chosen = best_channels(areas, config.channels)
        shown.append([_excited(at, label, learned, train, config.patches) for at, label in chosen.items()])
    return {
        "table": table,
        "depths": depths,
        "shown": shown,
        "usual": [
            {"mean": one.values.mean(0).tolist(), "deviation": one.values.std(0).tolist()} for one in on_train
        ],
        "shapes": [(one.values.shape[1], *one.shape) for one in on_train],
    }


def _judged(sampled: Sampled) -> dict[str, float | None]:
    found = estimate(sampled)
    return {"auroc": found.value, "low": found.low, "high": found.high}


def best_channels(areas: NDArray[np.float64], count: int) -> dict[int, int]:
    """Of the channels that tell a class best, those that do so best: classes by channel, the best first.

    Args:
        areas: (C, K) as `class_aurocs` gives them.
        count: of channels at most. One that is the best of several classes is there once.
    """
    found: dict[int, int] = {}
    known = np.flatnonzero(~np.isnan(areas[0]))
    for label in known[np.argsort(-areas[:, known].max(0), kind="stable")]:
        found.setdefault(int(areas[:, label].argmax()), int(label))
    return dict([*found.items()][:count])


def _excited(channel: int, label: int, learned: Responses, train: Images, count: int) -> dict[str, Any]:
    """A channel, with the training images that excite it most."""
    rows = strongest(learned.values[:, channel], train.lesions, count)
    return {
        "channel": channel,
        "label": train.classes[label],
        "rows": rows.tolist(),
        "values": learned.values[rows, channel].tolist(),
        "places": learned.places[rows, channel].tolist(),
    }
