"""torch modules to ONNX files: one self-contained file, quiet, with the sizes that may vary left open."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_OPSET = 18  # the first with antialiased Resize


def export_onnx(
    module: nn.Module,
    example: Tensor,
    path: Path,
    *,
    dynamic: dict[int, Any],
    inputs: list[str],
    outputs: list[str],
) -> None:
    """Export a module in eval mode to one .onnx file.

    Args:
        module: takes one tensor.
        example: traced with; its dimensions named in `dynamic` must be at least 2.
        path: of the file.
        dynamic: which of the example's dimensions may vary.
        inputs: the input's name.
        outputs: the outputs' names, in order.
    """
    onnx_log = logging.getLogger("torch.onnx")
    level = onnx_log.level
    # without gradients it is a third faster, and gives the same bytes
    quiet = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), quiet, torch.no_grad(), _not_in_place(module):
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        onnx_log.setLevel(logging.ERROR)
        try:
            torch.onnx.export(
                module,
                (example,),
                path,
                dynamo=True,
                opset_version=_OPSET,
                external_data=False,
                dynamic_shapes=(dynamic,),
                input_names=inputs,
                output_names=outputs,
                verbose=False,
            )
        finally:
            onnx_log.setLevel(level)
    _forget_where_it_was_made(path)


def replace_values(path: Path, values: Mapping[str, NDArray[np.float32]]) -> None:
    """Give an exported module's buffers or parameters other values, which needs no new export.

    Args:
        path: the .onnx file; it is written anew.
        values: float32, by the name that `state_dict` has for it, each of the same shape as before.

    Raises:
        KeyError: the graph has none of a name and shape.
    """
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in values.items():
        if name not in tensors or tuple(tensors[name].dims) != value.shape:
            raise KeyError(f"{path}: no {name} of shape {value.shape}")
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    onnx.save(model, path)


@contextlib.contextmanager
def _not_in_place(module: nn.Module) -> Iterator[None]:
    """Activations that make new tensors: the same numbers, and they are exported in half the time."""
    parts = [part for part in module.modules() if getattr(part, "inplace", False) is True]
    for part in parts:
        part.inplace = False  # type: ignore[assignment]  # a plain attribute of activations
    try:
        yield
    finally:
        for part in parts:
            part.inplace = True  # type: ignore[assignment]  # as above


def _forget_where_it_was_made(path: Path) -> None:
    """Take out stack traces: they name this machine's folders, and would make the bytes depend on them."""
    model = onnx.load(path)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        del part.metadata_props[:]
        part.doc_string = ""
    for part in (*model.graph.output, *model.graph.initializer, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)
