"""Run the frozen trunk: by ONNX Runtime on a CPU, where it is several times faster, by torch on a GPU."""

import copy
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermtune.backbone import Trunk, weights_fingerprint
from dermtune.config import BackboneConfig, Device
from dermtune.errors import ConfigError, DataError
from dermtune.fingerprint import code_fingerprint
from dermtune.onnx_export import export_onnx
from dermtune.prefetch import prefetch

log = logging.getLogger(__name__)

_MODULES = ("dermtune.backbone", "dermtune.chain", "dermtune.onnx_export", "dermtune.trunk")
Runner = Callable[[Iterable[NDArray[np.uint8]]], Iterator[NDArray[np.floating]]]


@dataclass(frozen=True)
class Fingerprint:
    """What stored activations were made from; finetune refuses those of anything else."""

    backbone: str
    cut: int
    input_size: int
    weights_sha256: str
    """Of the trunk's structure and numbers."""
    code_sha256: str
    """Of the modules that cut the backbone and run the trunk."""
    engine: str
    """What ran the trunk: ONNX Runtime, or torch on a GPU, which rounds to bfloat16 on the way to float16."""
    dtype: str
    shape: tuple[int, ...]
    """(C, h, w) of one image's activations."""
    views: dict[str, Any]
    """Of which views: what views.json says, among it the SHA-256 of the image table."""

    @classmethod
    def of(
        cls, trunk: Trunk, backbone: BackboneConfig, *, dtype: str, engine: str, views: dict[str, Any]
    ) -> Self:
        """The fingerprint of a trunk's activations of some views; the trunk is still on the CPU."""
        size = backbone.input_size
        shape = trunk.output_shape(size)
        weights, code = weights_fingerprint(trunk), code_fingerprint(*_MODULES)
        return cls(backbone.name, backbone.cut, size, weights, code, engine, dtype, shape, views)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the fingerprint that lies beside stored activations.

        Raises:
            DataError: it is missing or damaged.
        """
        values = _read_json(path, stage="embed")
        try:
            return cls(**values | {"shape": tuple(values["shape"]), "views": dict(values["views"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: no fingerprint of activations; re-run embed") from error

    def to_json(self) -> str:
        """The content of activations.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def require(self, trunk: Trunk, backbone: BackboneConfig, *, images_sha256: str) -> None:
        """Refuse to be used with another trunk or other images than those that it was made from.

        Raises:
            DataError: names what differs.
        """
        now = asdict(type(self).of(trunk, backbone, dtype=self.dtype, engine=self.engine, views=self.views))
        stored = asdict(self)
        pairs = [(key, stored[key], now[key]) for key in now]
        pairs.append(("images_sha256", self.views.get("images_sha256"), images_sha256))
        shown = "; ".join(f"{key}: stored {was}, now {is_}" for key, was, is_ in pairs if was != is_)
        if shown:
            raise DataError(f"the activations were made from something else ({shown}); re-run embed")


def read_views_json(folder: Path) -> dict[str, Any]:
    """What augment wrote of the views that it made.

    Raises:
        DataError: views.json is missing or damaged.
    """
    return _read_json(folder / "views.json", stage="augment")


def _read_json(path: Path, *, stage: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: missing or damaged; re-run {stage}") from error


class _FromViews(nn.Module):
    """The trunk behind the layout that views are stored in."""

    def __init__(self, trunk: Trunk, dtype: torch.dtype) -> None:
        super().__init__()
        self.trunk = trunk
        self.dtype = dtype

    def forward(self, views: Tensor) -> Tensor:
        """From uint8 (N, S, S, 3) to activations (N, C, h, w) of the stored type."""
        activations: Tensor = self.trunk(views.permute(0, 3, 1, 2).float())
        return activations.to(self.dtype)


def resolve_device(device: Device, *, key: str) -> str:
    """`auto` is a GPU where there is one; of torchrun's processes, each has its own.

    Raises:
        ConfigError: a GPU is asked for, by `key` in params.yaml, where there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError(f"{key}: 'cuda' is asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    if device == "cpu" or not available:
        return "cpu"
    # named, for a thread that makes batches does not know which one is current
    return f"cuda:{os.environ['LOCAL_RANK']}" if torch.distributed.is_torchelastic_launched() else "cuda"


@contextmanager
def reproducible(device: str | torch.device) -> Iterator[None]:
    """Let a GPU give the same bytes again: of torch's algorithms, those that add up in one order.

    Torch warns of an operation that has none. A CPU needs none of it.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    memory.fill_uninitialized_memory = False  # nothing reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


def make_runner(trunk: Trunk, *, input_size: int, dtype: str, device: str) -> Runner:
    """What `runner_maker` makes, in this process."""
    return runner_maker(trunk, input_size=input_size, dtype=dtype, device=device)()


def runner_maker(
    trunk: Trunk, *, input_size: int, dtype: str, device: str, threads: int = 0
) -> Callable[[], Runner]:
    """Makes, in any process, for it can be pickled, what runs the trunk over batches.

    That is a function from batches of views, uint8 (N, S, S, 3), to their activations, `dtype` (N, C, h, w).

    Making a batch, running the trunk on the one before and using the one before that overlap.

    Args:
        trunk: the frozen part of the network; a copy of it is used.
        input_size: S, in pixels.
        dtype: `float16` or `float32`, how the activations are stored.
        device: `cpu` (ONNX Runtime) or a torch device.
        threads: of ONNX Runtime; 0: as many as there are cores. It changes no result.
    """
    if device == "cpu":
        return partial(_onnx_runner, onnx_graph(trunk, input_size=input_size, dtype=dtype), threads)
    return partial(_torch_runner, trunk, dtype, device)


def _onnx_runner(graph: bytes, threads: int) -> Runner:
    run = onnx_function(graph, threads=threads)
    return lambda batches: prefetch(map(run, prefetch(batches)))


def _torch_runner(trunk: Trunk, dtype: str, device: str) -> Runner:
    run = within_memory(torch_function(trunk, dtype=dtype, device=device))
    return lambda batches: prefetch(_on_device(run, batches, device))


def engine_of(device: str, dtype: str) -> str:
    """What `make_runner` runs the trunk with, for the fingerprint."""
    if device == "cpu":
        return f"onnxruntime {onnxruntime.__version__}"
    return f"torch {torch.__version__}" + (", bfloat16" if dtype == "float16" else "")


def onnx_graph(trunk: Trunk, *, input_size: int, dtype: str) -> bytes:
    """The trunk as an ONNX graph."""
    module = _FromViews(trunk, getattr(torch, dtype)).eval()
    example = torch.zeros(2, input_size, input_size, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trunk.onnx"
        batch = torch.export.Dim.DYNAMIC
        export_onnx(module, example, path, dynamic={0: batch}, inputs=["views"], outputs=["activations"])
        return path.read_bytes()


def onnx_function(graph: bytes, *, threads: int = 0) -> Callable[[NDArray[np.uint8]], NDArray[np.floating]]:
    """The trunk in ONNX Runtime, on one batch, which is in memory."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def run(views: NDArray[np.uint8]) -> NDArray[np.floating]:
        activations: NDArray[np.floating] = session.run(["activations"], {"views": views})[0]
        return activations

    return run


def torch_function(trunk: Trunk, *, dtype: str, device: str) -> Callable[[Tensor], Tensor]:
    """The trunk in torch, on one batch, which is on the device.

    What is to be stored in 16 bits is computed in as many on a GPU.
    """
    module = _FromViews(copy.deepcopy(trunk), getattr(torch, dtype)).eval().to(device)
    module = module.to(memory_format=torch.channels_last)
    half = torch.device(device).type == "cuda" and dtype == "float16"

    def run(views: Tensor) -> Tensor:
        bf16 = torch.autocast("cuda", torch.bfloat16, enabled=half)
        with torch.inference_mode(), reproducible(device), bf16:
            activations: Tensor = module(views)
        return activations

    return run


def within_memory(run: Callable[[Tensor], Tensor], stage: str = "embed") -> Callable[[Tensor], Tensor]:
    """The same function of rows, which takes fewer of them at once where a GPU has no room for all.

    Args:
        run: of a batch, row by row.
        stage: whose device the GPU is, for errors.

    Raises:
        DataError: there is no room for a single row.
    """
    most: int | None = None

    def careful(rows: Tensor) -> Tensor:
        nonlocal most
        while True:
            size = min(len(rows), most or len(rows))
            try:
                if size == len(rows):
                    return run(rows)
                # on the CPU: there may be no room for all results either
                return torch.cat([run(part).cpu() for part in torch.split(rows, size)])
            except torch.OutOfMemoryError as error:
                if size <= 1:
                    raise DataError(
                        f"{stage}: the GPU has no room for the network and one image; use a smaller"
                        f" backbone.input_size or {stage}.device: cpu"
                    ) from error
                most = size // 2
                log.warning("warning: no room for %d images on the GPU; going on with %d at once", size, most)
                torch.cuda.empty_cache()

    return careful


def _on_device(
    run: Callable[[Tensor], Tensor], batches: Iterable[NDArray[np.uint8]], device: str
) -> Iterator[NDArray[np.floating]]:
    on_gpu = torch.device(device).type == "cuda"

    def load(views: NDArray[np.uint8]) -> Tensor:
        pixels = torch.from_numpy(views)
        return (pixels.pin_memory() if on_gpu else pixels).to(device, non_blocking=True)

    before = None
    for pixels in prefetch(map(load, batches)):
        coming = _to_host(run(pixels))
        if before:
            yield before()  # only now, when the GPU has its next batch queued
        before = coming
    if before:
        yield before()


def _to_host(activations: Tensor) -> Callable[[], NDArray[np.floating]]:
    """Start the copy to the CPU; what is returned waits for it."""
    if not activations.is_cuda:
        return activations.numpy
    copied = torch.empty(activations.shape, dtype=activations.dtype, pin_memory=True)
    copied.copy_(activations, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch ships no type for it
    done.record()

    def wait() -> NDArray[np.floating]:
        done.synchronize()
        return copied.numpy()

    return wait
