"""embed: views in; the frozen trunk's activations of each, computed once, out."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dermtune.config import BackboneConfig, Config, Device
from dermtune.disk import array_bytes, require_room
from dermtune.engine import LOCAL, ComputeConfig, each
from dermtune.errors import DataError
from dermtune.progress import progress
from dermtune.shards import create_rows, open_array, read_batches, remove_views, view_paths, write_rows
from dermtune_bundle.files import atomic_path

if TYPE_CHECKING:
    from dermtune.trunk import Runner

_BATCHES = 16  # in one piece of work


class EmbedConfig(Config):
    """How the trunk is run and its activations stored."""

    device: Device
    """`cpu` runs ONNX Runtime, `cuda` torch; `auto` takes a GPU where there is one."""
    batch_size: Annotated[int, Field(ge=1)]
    dtype: Literal["float16", "float32"]


@dataclass(frozen=True)
class Part:
    """Rows of one array of views, and the file of `create_rows` that gets their activations."""

    views: Path
    out: Path
    rows: range


def embed(
    config: EmbedConfig,
    *,
    backbone: BackboneConfig,
    views: Path,
    out: Path,
    compute: ComputeConfig = LOCAL,
) -> None:
    """Run the frozen trunk over every view of the training images and over the validation images.

    Raises:
        ConfigError: the backbone cannot be loaded or cut.
        DataError: the views are missing or of another size.
    """
    from dermtune.backbone import load_backbone
    from dermtune.trunk import Fingerprint, engine_of, read_views_json, resolve_device, runner_maker

    out.mkdir(parents=True, exist_ok=True)
    remove_views(out)
    (out / "activations.json").unlink(missing_ok=True)  # it vouches for what lies beside it
    trunk = load_backbone(backbone).trunk
    device = resolve_device(config.device, key="embed.device")
    size = backbone.input_size
    made_from = Fingerprint.of(
        trunk,
        backbone,
        dtype=config.dtype,
        engine=engine_of(device, config.dtype),
        views=read_views_json(views),
    )
    paths = [*view_paths(views), views / "val.npy", *views.glob("plain.npy")]
    rows = sum(len(open_array(path)) for path in paths)
    require_room("embed", array_bytes(rows, made_from.shape, config.dtype), out)
    for path in paths:
        images = open_array(path)
        if images.shape[1:] != (size, size, 3):
            raise DataError(f"{path}: views are {images.shape[1]} pixels wide, not {size}; re-run augment")
    # a core a process on Ray, all cores for the one process here
    threads = 1 if compute.engine == "ray" else 0
    make = runner_maker(trunk, input_size=size, dtype=config.dtype, device=device, threads=threads)
    embed_files(config, make, paths, made_from.shape, out, compute=compute, gpus=int(device != "cpu"))
    with atomic_path(out / "activations.json") as temporary:
        temporary.write_text(made_from.to_json(), encoding="utf-8")


def embed_files(
    config: EmbedConfig,
    make: "Callable[[], Runner]",
    paths: Sequence[Path],
    shape: tuple[int, ...],
    out: Path,
    *,
    compute: ComputeConfig = LOCAL,
    gpus: int = 0,
) -> None:
    """Write the activations of some arrays of views to files of the same names; all are there, or none is.

    Args:
        config: batch size, and how activations are stored.
        make: as `runner_maker` gives it.
        paths: arrays (N, S, S, 3) uint8, as `open_array` reads them.
        shape: (C, h, w) of one image's activations.
        out: the folder, which every process can reach.
        compute: where.
        gpus: that one process needs.

    Raises:
        DataError: an activation is too large for the type that it is stored in, or no number.
    """
    step = config.batch_size * _BATCHES
    with ExitStack() as files:
        parts = []
        for path in paths:
            count = len(open_array(path))
            temporary = files.enter_context(create_rows(out / path.name, (count, *shape), config.dtype))
            starts = range(0, count, step)
            parts += [
                Part(path.absolute(), temporary.absolute(), range(start, min(start + step, count)))
                for start in starts
            ]
        total = sum(len(part.rows) for part in parts)
        done = each(compute, partial(make_embed_part, config, make), parts, gpus=gpus)
        written = sum(progress(done, "embed", total, step=step))
        if written != total:
            raise DataError(f"{out}: {written} activations written of {total}; run embed again")


def make_embed_part(config: EmbedConfig, make: "Callable[[], Runner]") -> "Callable[[Part], int]":
    """Make `embed_part`, of one trunk, in whatever process."""
    return partial(embed_part, config, make())


def embed_part(config: EmbedConfig, run: "Runner", part: Part) -> int:
    """Read some views, run the trunk, write the activations, overlapped; to do it again changes nothing.

    Gives how many rows were written.

    Raises:
        DataError: an activation is too large for the type that it is stored in, or no number.
    """
    found = run(read_batches(open_array(part.views), config.batch_size, part.rows))
    return write_rows(part.out, part.rows.start, (_finite(batch, config, part) for batch in found))


def _finite(batch: NDArray[np.floating], config: EmbedConfig, part: Part) -> NDArray[np.floating]:
    if not np.isfinite(batch).all():
        raise DataError(
            f"{part.views.stem}: an activation is too large for {config.dtype}, or no number; set"
            " embed.dtype: float32, or check the backbone's weights"
        )
    return batch
