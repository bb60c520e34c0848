"""The deployable graph: preprocessing, trunk, tails and calibration in one module, exported to ONNX.

What was measured is what is shipped: evaluate and the bundle run the file that this module writes.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dermtune.backbone import Tail, Trunk
from dermtune.calibration import KNOTS, Calibrator
from dermtune.errors import DataError
from dermtune.onnx_export import export_onnx, replace_values
from dermtune_bundle.graph import INPUT, OUTPUTS, Graph

_TOLERANCE = 1e-4
NEIGHBOR = 5
"""Which of the nearest references an image is held against: the first may be a twin."""
_TRANSPOSED = 4  # the bit of a view's number that swaps rows and columns


class Deployable(nn.Module):
    """From the pixels of an image of any size to calibrated probabilities, and how unlike known ones it is.

    Its buffers hold numbers that will do for an export, until `set_numbers` gives it those that are fitted on
    what the graph itself says.
    """

    tails: Iterable[Tail]
    logit_scale: Tensor
    logit_shift: Tensor
    given: Tensor
    found: Tensor
    reference: Tensor

    def __init__(
        self,
        trunk: Trunk,
        tails: Sequence[Tail],
        *,
        input_size: int,
        test_views: int = 1,
        references: int,
        curves: bool = False,
    ) -> None:
        """Join the parts.

        Args:
            trunk: the frozen part.
            tails: an ensemble of one or more, whose logits are averaged.
            input_size: side of the square that the network sees, in pixels.
            test_views: 1, 2, 4 or 8: flips and turns of each image, whose logits are averaged.
            references: how many images a new one is held against.
            curves: leave room for a curve a class, as isotonic calibration has.
        """
        super().__init__()
        self.trunk = trunk
        self.tails = nn.ModuleList(tails)  # type: ignore[assignment]  # of tails alone
        self.input_size = input_size
        self.test_views = test_views
        self.curves = curves
        self.frozen_features = trunk.output_shape(input_size)[0]
        """How many of the embedding's numbers, the last ones, are of the frozen trunk."""
        head = tails[0].classifier
        classes, features = head.out_features, head.in_features * len(tails) + self.frozen_features
        rng = torch.Generator().manual_seed(0)

        def room(*shape: int) -> Tensor:
            # no two alike, no 0 and no 1: the exporter would join what is equal, drop what does nothing
            return 0.25 + 0.5 * torch.rand(*shape, generator=rng)

        self.register_buffer("logit_scale", room(classes))
        self.register_buffer("logit_shift", room(classes))
        given = room(1, classes, KNOTS).sort(2).values
        given[:, :, 0] *= 1e-6  # from nearly 0 …
        given[:, :, -1] = 1 + 1e-6 * given[:, :, -1]  # … to 1: no probability is beyond a curve's ends
        self.register_buffer("given", given)
        self.register_buffer("found", room(1, classes, KNOTS).sort(2).values)
        self.register_buffer("reference", functional.normalize(room(features, references), dim=0))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run the whole network on RGB images of one size.

        Args:
            image: uint8 (N, H, W, 3).

        Returns:
            Probabilities (N, K), logits (N, K), embedding (N, F): the tails' last features and the trunk's,
            means over places, each of length one, for what is unlike any lesion is plain to the frozen
            layers, and what is unlike the lesions learned from to the trained ones; activation maps
            (N, K, h, w): what each place of the last feature map adds to each class's logit (Zhou et al.
            2016, Class Activation Mapping, eq. 2); and distances (N,): cosine distance of the embedding to
            its `NEIGHBOR`-th nearest reference (Sun et al. 2022, Out-of-Distribution Detection with Deep
            Nearest Neighbors).
            Means over test views and tails; the embedding has each tail's channels, one after the other, then
            the trunk's.
        """
        size = [self.input_size, self.input_size]
        pixels = image.permute(0, 3, 1, 2).float()
        pixels = functional.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        views = torch.cat([turn(pixels, view) for view in range(self.test_views)])
        activations = self.trunk(views)
        outputs = [_outputs(tail, activations) for tail in self.tails]
        logits = self._by_view(_mean([logits for logits, _, _ in outputs])).mean(0)
        parts = (torch.cat([pooled for _, pooled, _ in outputs], dim=1), activations.mean((2, 3)))
        unit = torch.cat([functional.normalize(part, dim=1) for part in parts], dim=1)
        embedding = self._by_view(unit).mean(0)
        maps = self._by_view(_mean([maps for _, _, maps in outputs]))
        activation_map = _mean([_turn_back(maps[view], view) for view in range(self.test_views)])
        probabilities = (logits * self.logit_scale + self.logit_shift).softmax(1)
        if self.curves:
            along = self._along_curves(probabilities)
            probabilities = along / along.sum(1, keepdim=True)
        nearness = functional.normalize(embedding, dim=1) @ self.reference
        distance = 1 - nearness.topk(NEIGHBOR, dim=1).values[:, -1]
        return probabilities, logits, embedding, activation_map, distance

    def _along_curves(self, probabilities: Tensor) -> Tensor:
        """Piecewise linear from `given` to `found`, of each class (N, K)."""
        here = probabilities[:, :, None]
        left = (here >= self.given).sum(2, keepdim=True).clamp(1, KNOTS - 1) - 1
        given, found = (knots.expand(len(here), -1, -1) for knots in (self.given, self.found))
        start, end = given.gather(2, left), given.gather(2, left + 1)
        low, high = found.gather(2, left), found.gather(2, left + 1)
        return (low + (high - low) * (here - start) / (end - start).clamp(min=1e-9))[:, :, 0]

    def _by_view(self, values: Tensor) -> Tensor:
        """From (views * N, …) to (views, N, …)."""
        return values.reshape(self.test_views, -1, *values.shape[1:])


def _mean(tensors: list[Tensor]) -> Tensor:
    return torch.stack(tensors).mean(0)


def _outputs(tail: Tail, activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, K), pooled features (N, F) and activation maps (N, K, h, w) of one tail."""
    features = tail.units(activations)
    maps = torch.einsum("nfhw,kf->nkhw", features, tail.classifier.weight)
    return tail.classify(features), features.mean((2, 3)), maps / (features.shape[2] * features.shape[3])


def turn(images: Tensor, view: int) -> Tensor:
    """One of the eight symmetries of a square, of (N, C, S, S); view 0 is the image itself.

    Of the view's bits, 1 flips left and right, 2 top and bottom, and 4 then swaps rows and columns.
    """
    flipped = images.flip([axis for bit, axis in ((1, 3), (2, 2)) if view & bit])
    return flipped.transpose(2, 3) if view & _TRANSPOSED else flipped


def _turn_back(images: Tensor, view: int) -> Tensor:
    """What undoes `turn`."""
    turned = images.transpose(2, 3) if view & _TRANSPOSED else images
    return turned.flip([axis for bit, axis in ((1, 3), (2, 2)) if view & bit])


def export_deployable(module: Deployable, path: Path) -> None:
    """Write the module, in eval mode, as model.onnx; N, H and W stay open."""
    height, width = module.input_size + 32, module.input_size + 64  # not square, so that none is mixed up
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    open_sizes = dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    export_onnx(module.eval(), example, path, dynamic=open_sizes, inputs=[INPUT], outputs=list(OUTPUTS))


def graph_numbers(calibrator: Calibrator) -> dict[str, NDArray[np.floating]]:
    """A calibrator as `set_numbers` takes it."""
    numbers: dict[str, NDArray[np.floating]] = {
        "logit_scale": calibrator.scale,
        "logit_shift": calibrator.shift,
    }
    if calibrator.given is not None and calibrator.found is not None:
        numbers |= {"given": calibrator.given, "found": calibrator.found}
    return numbers


def set_numbers(module: Deployable, path: Path, numbers: Mapping[str, NDArray[np.floating]]) -> None:
    """Set buffers of the module, and of the model.onnx that was exported from it.

    Args:
        module: its buffers are changed in place.
        path: the graph's file; it is written anew.
        numbers: by the buffer's name, of its shape.
    """
    for name, value in numbers.items():
        buffer = module.get_buffer(name)
        buffer.copy_(torch.from_numpy(value.astype(np.float32)).reshape(buffer.shape))
    replace_values(path, {name: module.get_buffer(name).numpy() for name in numbers})


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
