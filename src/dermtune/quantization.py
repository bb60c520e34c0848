"""The deployable graph in 8-bit integers: smaller and faster, and a little different, so it is measured."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from dermtune_bundle.graph import INPUT


class _Images(CalibrationDataReader):  # type: ignore[misc]  # it ships no types
    def __init__(self, images: Iterable[NDArray[np.uint8]]) -> None:
        self._images: Iterator[NDArray[np.uint8]] = iter(images)

    def get_next(self) -> Mapping[str, NDArray[np.uint8]] | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: image[np.newaxis]}


def quantize(path: Path, images: Iterable[NDArray[np.uint8]]) -> None:
    """Give the convolutions of a graph 8-bit weights, a scale a channel, and 8-bit activations.

    All else stays in float32: the resize, the classifier, the calibration. Seven bits of a weight's eight are
    used: with all eight, processors without VNNI overflow, and give other probabilities than those with it.

    Args:
        path: the .onnx file; it is written anew.
        images: uint8 (H, W, 3) each; the ranges of activations are those that they show.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it asks for a step that ours needs not: the graph has its shapes
    try:
        quantize_static(
            path,
            path,
            _Images(images),
            op_types_to_quantize=["Conv", "Clip"],  # a Clip's range becomes that of the convolution before it
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)
