"""What in an image speaks for a class: captum's maps of a network, by gradients and by covering parts."""

from collections.abc import Callable, Sequence
from types import ModuleType

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermtune.backbone import Tail, Trunk
from dermtune.chain import require_maps
from dermtune.errors import ConfigError

Map = NDArray[np.float32]


class _After(nn.Module):
    """What follows a layer, up to the logits."""

    def __init__(self, units: Sequence[nn.Module], tail: Tail) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.tail = tail

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.tail.classify(self.units(features))
        return logits


def grad_cam(units: Sequence[nn.Module], tail: Tail, features: Tensor, target: int) -> Map:
    """Each channel of a layer, weighted by the mean of the gradient of a class's logit: (h, w), signed.

    On the last layer of a network that ends in a mean over places and one linear layer, it is the class
    activation map.

    Args:
        units: what lies between the layer and the tail's classifier; none: the layer is the last.
        tail: in eval mode; only its classifier is used.
        features: (1, C, h, w) of the layer.
        target: column of the class.

    Raises:
        ConfigError: captum is not installed.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, eq. 1 and 2; the positive part is left to who draws it.
    """
    return _of_layer("LayerGradCam", units, tail, features, target)


def hires_cam(units: Sequence[nn.Module], tail: Tail, features: Tensor, target: int) -> Map:
    """Each place and channel of a layer, times the gradient of a class's logit there: (h, w), signed.

    On the last layer it is as `grad_cam`. Before that, gradients differ from place to place, and their mean
    over places, which `grad_cam` takes, no longer tells where.

    Args:
        units: as of `grad_cam`.
        tail: the same.
        features: the same.
        target: the same.

    Raises:
        ConfigError: captum is not installed.

    Source: Draelos and Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
    neural networks, 2020.
    """
    return _of_layer("LayerGradientXActivation", units, tail, features, target)


def _of_layer(method: str, units: Sequence[nn.Module], tail: Tail, features: Tensor, target: int) -> Map:
    after = _After(units, tail)
    make = getattr(_captum(), method)(after, after.units)
    found: Tensor = make.attribute(features, target, attribute_to_layer_input=True)
    return found.detach()[0].sum(0).numpy()


def occlusion(
    logits: Callable[[NDArray[np.uint8]], NDArray[np.floating]],
    image: NDArray[np.uint8],
    target: int,
    *,
    window: float,
) -> Map:
    """How much a class's logit loses where a square slides over an image, by half its side a step.

    The square has the image's median colour, which is mostly the skin's: a grey one on skin would itself look
    like a lesion.

    Args:
        logits: from uint8 (N, S, S, 3) to (N, K).
        image: uint8 (S, S, 3).
        target: column of the class.
        window: side of the square, as a share of S.

    Returns:
        (n, n) for n steps along a side: the mean over the squares that cover a place.

    Raises:
        ConfigError: captum is not installed.

    Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4.2.
    """
    size = len(image)
    side = max(2, round(window * size))
    cells = round(2 / window)

    def run(pixels: Tensor) -> Tensor:
        covered = pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy()
        return torch.from_numpy(np.asarray(logits(covered), np.float32))

    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    colour = np.median(image.reshape(-1, 3), axis=0).astype(np.float32)
    found = (
        _captum()
        .Occlusion(run)
        .attribute(
            pixels,
            sliding_window_shapes=(3, side, side),
            strides=(3, side // 2, side // 2),
            baselines=torch.from_numpy(colour).view(1, 3, 1, 1).expand_as(pixels),
            target=target,
        )
    )
    lost = found[0].mean(0).numpy()
    return np.asarray(cv2.resize(lost, (cells, cells), interpolation=cv2.INTER_AREA), np.float32)


def units_to_finer_map(trunk: Trunk, tail: Tail, *, input_size: int) -> int:
    """How many of the units of trunk and tail end in the last map that is finer than the final one.

    Raises:
        ConfigError: they are a transformer's.
    """
    require_maps([*trunk.units, *tail.units], what="dermtune study where")
    sides = []
    features = torch.zeros(1, 3, input_size, input_size)
    with torch.inference_mode():
        for unit in [*trunk.units, *tail.units]:
            features = unit(features)
            sides.append(features.shape[-1])
    return max((count for count, side in enumerate(sides, 1) if side > sides[-1]), default=1)


def _captum() -> ModuleType:
    try:
        from captum import attr  # noqa: PLC0415 (the extra [study])
    except ImportError as error:
        raise ConfigError("this study needs captum: pip install 'dermtune[study]'") from error
    return attr  # type: ignore[no-any-return]
