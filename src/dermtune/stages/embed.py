"""embed: views in; the frozen trunk's activations of each, computed once, out."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dermtune.config import BackboneConfig, Config, Device
from dermtune.disk import array_bytes, require_room
from dermtune.errors import DataError
from dermtune.progress import progress
from dermtune.shards import create_array, open_array, read_batches, remove_views, view_paths
from dermtune_bundle.files import atomic_path

if TYPE_CHECKING:
    from dermtune.trunk import Runner

log = logging.getLogger(__name__)


class EmbedConfig(Config):
    """How the trunk is run and its activations stored."""

    device: Device
    """`cpu` runs ONNX Runtime, `cuda` torch; `auto` takes a GPU where there is one."""
    batch_size: Annotated[int, Field(ge=1)]
    dtype: Literal["float16", "float32"]


def embed(config: EmbedConfig, *, backbone: BackboneConfig, views: Path, out: Path) -> None:
    """Run the frozen trunk over every view of the training images and over the validation images.

    Raises:
        ConfigError: the backbone cannot be loaded or cut.
        DataError: the views are missing or of another size.
    """
    from dermtune.backbone import load_backbone
    from dermtune.trunk import Fingerprint, engine_of, make_runner, read_views_json, resolve_device

    out.mkdir(parents=True, exist_ok=True)
    remove_views(out)
    (out / "activations.json").unlink(missing_ok=True)  # it vouches for what lies beside it
    trunk = load_backbone(backbone).trunk
    device = resolve_device(config.device, key="embed.device")
    size = backbone.input_size
    run = make_runner(trunk, input_size=size, dtype=config.dtype, device=device)
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
        embed_array(config, run, images, made_from.shape, out / path.name)
        log.info("%s: %d images", path.stem, len(images))
    with atomic_path(out / "activations.json") as temporary:
        temporary.write_text(made_from.to_json(), encoding="utf-8")


def embed_array(
    config: EmbedConfig, run: "Runner", images: NDArray[np.uint8], shape: tuple[int, ...], out: Path
) -> None:
    """Write the activations of one array of views; reading, running and writing overlap.

    Args:
        config: batch size, and how activations are stored.
        run: as `make_runner` gives it.
        images: (N, S, S, 3), as `open_array` gives it.
        shape: (C, h, w) of one image's activations.
        out: the .npy file.

    Raises:
        DataError: an activation is too large for the type that it is stored in, or no number.
    """
    with create_array(out, (len(images), *shape), config.dtype) as activations:
        found = run(read_batches(images, config.batch_size))
        for batch in progress(found, f"embed {out.stem}", len(images), step=config.batch_size):
            if not np.isfinite(batch).all():
                raise DataError(
                    f"{out.stem}: an activation is too large for {config.dtype}, or no number; set"
                    " embed.dtype: float32, or check the backbone's weights"
                )
            activations.append(batch)
