"""The deployable graph: from pixels of any size to calibrated probabilities, by ONNX Runtime on a CPU."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from dermtune_bundle.errors import BundleError

INPUT: Final = "image"
_SUM_TOLERANCE: Final = 1e-3  # of probabilities that sum to one
_MAX_THREADS: Final = 8  # more gain nothing for one image
OUTPUTS: Final = ("probabilities", "logits", "embedding", "activation_map", "distance")


@dataclass(frozen=True)
class GraphOutput:
    """What the graph says of one image."""

    probabilities: NDArray[np.float32]
    """(K,) calibrated; they sum to one."""
    logits: NDArray[np.float32]
    """(K,) what the probabilities are made of."""
    embedding: NDArray[np.float32]
    """(F,) what the classifier sees."""
    activation_map: NDArray[np.float32]
    """(K, h, w) how much each place adds to each class's logit."""
    distance: np.float32
    """How unlike the images that the model was calibrated on: 0 for the same embedding, at most 2."""


def _is_straight(model: bytes) -> bool:
    """Does a model hold neither functions nor graphs inside of nodes (Loop, If, Scan), which need not end?

    Read from its protobuf (onnx.proto3: ModelProto.graph 7 and functions 25, GraphProto.node 1,
    NodeProto.attribute 5, AttributeProto.g 6 and graphs 11), for onnx is no package of the consumer's side.
    """
    try:
        parts = [(field, value) for field, value in _fields(memoryview(model)) if field in {7, 25}]
        nodes = [node for _, graph in parts for field, node in _fields(graph) if field == 1]
        attributes = [one for node in nodes for field, one in _fields(node) if field == 5]  # noqa: PLR2004
        inside = [field for one in attributes for field, _ in _fields(one) if field in {6, 11}]
    except (IndexError, ValueError):
        return False
    return not inside and all(field != 25 for field, _ in parts)  # noqa: PLR2004 (as above)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field of a protobuf message that has a length; the others are skipped."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                length, at = _varint(message, at)
                if at + length > len(message):
                    raise ValueError
                yield tag >> 3, message[at : at + length]
                at += length
            case 5:
                at += 4
            case _:
                raise ValueError


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, and where what follows begins."""
    value = shift = 0
    while shift <= 63:  # noqa: PLR2004 (ten bytes)
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:  # noqa: PLR2004 (the last)
            return value, at
        shift += 7
    raise ValueError


class Graph:
    """A model.onnx that keeps the contract of docs/formats.md; preprocessing is inside it."""

    def __init__(self, model: bytes, *, name: str = "model.onnx", threads: int = 0) -> None:
        """Load a graph.

        Args:
            model: the bytes of the file. Bytes, not a path: what was checked is what runs.
            name: what error messages call it.
            threads: how many CPU threads one image may use; 0 for as many as there are, at most 8.

        Raises:
            BundleError: it is no ONNX model, or has other inputs or outputs than the contract.
        """
        self._name = name
        if not _is_straight(model):
            raise BundleError(
                f"{name}: not an ONNX model, or one with loops, branches or functions, which dermtune refuses"
            )
        options = onnxruntime.SessionOptions()
        # left to itself, ONNX Runtime counts cores, of which hyperthreads make two, and is a quarter slower
        options.intra_op_num_threads = threads or min(_MAX_THREADS, os.cpu_count() or 1)
        options.log_severity_level = 4  # its errors come as exceptions; it need not print them as well
        # A graph may name other files as its weights. Ours holds all of its own, so such names lead nowhere.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        onnxruntime.disable_telemetry_events()
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base
            raise BundleError(f"{name}: not an ONNX model that this ONNX Runtime can load") from error
        self.num_classes, self.num_features = self._check()

    @classmethod
    def open(cls, path: Path, *, threads: int = 0) -> Self:
        """Load a graph from a file.

        Raises:
            BundleError: the file is missing, or as for the constructor.
        """
        try:
            model = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from error
        return cls(model, name=str(path), threads=threads)

    def run(self, image: NDArray[np.uint8]) -> GraphOutput:
        """Run one image.

        Args:
            image: uint8 (H, W, 3), RGB, any H and W.

        Raises:
            ValueError: `image` has another shape or dtype.
            BundleError: the graph fails on it, or gives impossible numbers.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:  # noqa: PLR2004 (H, W, 3)
            raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        try:
            outputs = self._session.run(OUTPUTS, {INPUT: image[np.newaxis]})
        except Exception as error:
            raise BundleError(f"{self._name}: fails on an image of shape {image.shape}") from error
        found = GraphOutput(*(output[0] for output in outputs))
        self._require_possible(found)
        return found

    def _require_possible(self, found: GraphOutput) -> None:
        """A number that is none would pass every limit and reach no threshold."""
        probabilities = found.probabilities
        possible = (
            all(np.isfinite(values).all() for values in vars(found).values())
            and found.activation_map.ndim == 3  # noqa: PLR2004 (K, h, w)
            and len(found.activation_map) == len(probabilities) == self.num_classes
            and (probabilities >= 0).all()
            and abs(float(probabilities.sum()) - 1) < _SUM_TOLERANCE
        )
        if not possible:
            raise BundleError(f"{self._name}: gives impossible numbers; do not use the bundle")

    def _check(self) -> tuple[int, int]:
        """Hold inputs and outputs against the contract; gives K and F."""
        inputs = {value.name: (value.type, value.shape[3:]) for value in self._session.get_inputs()}
        if inputs != {INPUT: ("tensor(uint8)", [3])}:
            raise BundleError(f"{self._name}: expected one input, {INPUT}: uint8 (N, H, W, 3), got {inputs}")
        outputs = {value.name: value for value in self._session.get_outputs()}
        kinds = {name: value.type for name, value in outputs.items()}
        if kinds != dict.fromkeys(OUTPUTS, "tensor(float)"):
            raise BundleError(f"{self._name}: expected float32 outputs {', '.join(OUTPUTS)}, got {kinds}")
        shape = outputs["probabilities"].shape
        if len(shape) != 2 or not isinstance(shape[1], int):  # noqa: PLR2004 (N, K)
            raise BundleError(
                f"{self._name}: expected probabilities of shape (N, K) with a fixed K, got {shape}"
            )
        features = outputs["embedding"].shape[-1]
        if not isinstance(features, int):
            raise BundleError(f"{self._name}: expected embeddings of a fixed size, got {features}")
        return shape[1], features
