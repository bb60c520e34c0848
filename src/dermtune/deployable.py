"""The deployable graph: preprocessing, trunk, tail and calibration in one module, exported to ONNX.

What was measured is what is shipped: evaluate and the bundle run the file that this module writes.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dermtune.backbone import Tail, Trunk
from dermtune.errors import DataError
from dermtune.onnx_export import export_onnx
from dermtune_bundle.graph import INPUT, OUTPUTS, Graph

_TOLERANCE = 1e-4


class Deployable(nn.Module):
    """From the pixels of an image of any size to calibrated probabilities."""

    def __init__(self, trunk: Trunk, tail: Tail, *, input_size: int, temperature: float) -> None:
        super().__init__()
        self.trunk = trunk
        self.tail = tail
        self.input_size = input_size
        self.temperature = temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the whole network on RGB images of one size.

        Args:
            image: uint8 (N, H, W, 3).

        Returns:
            Probabilities (N, K), embedding (N, F) and activation maps (N, K, h, w): what each place of the
            last feature map adds to each class's logit (Zhou et al. 2016, Class Activation Mapping, eq. 2).
        """
        size = [self.input_size, self.input_size]
        pixels = image.permute(0, 3, 1, 2).float()
        pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        features = self.tail.units(self.trunk(pixels))
        logits = self.tail.classify(features)
        weight = self.tail.classifier.weight
        activation_map = torch.einsum("nfhw,kf->nkhw", features, weight) / (
            features.shape[2] * features.shape[3]
        )
        return (logits / self.temperature).softmax(1), features.mean((2, 3)), activation_map


def export_deployable(module: Deployable, path: Path) -> None:
    """Write the module, in eval mode, as model.onnx; N, H and W stay open."""
    height, width = module.input_size + 32, module.input_size + 64  # not square, so that none is mixed up
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    open_sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    export_onnx(module.eval(), example, path, dynamic=open_sizes, inputs=[INPUT], outputs=list(OUTPUTS))


def check_parity(module: Deployable, graph: Graph, images: Iterable[NDArray[np.uint8]]) -> float:
    """Compare the exported graph with torch on real images; gives the largest difference of a probability.

    Args:
        module: in eval mode.
        graph: exported from it.
        images: uint8 (H, W, 3) each.

    Raises:
        DataError: they differ by more than 1e-4.
    """
    worst = 0.0
    for image in images:
        with torch.inference_mode():
            ours = module(torch.from_numpy(image)[None])[0][0].numpy()
        worst = max(worst, float(np.abs(ours - graph.run(image).probabilities).max()))
    if worst > _TOLERANCE:
        raise DataError(f"model.onnx gives other probabilities than torch, by up to {worst:.1e}")
    return worst
