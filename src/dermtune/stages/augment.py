"""augment: the ingested images in; augmented views of the training images, plain validation images out."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dermtune.config import Config
from dermtune.disk import array_bytes, require_room
from dermtune.fingerprint import code_fingerprint, versions
from dermtune.progress import progress
from dermtune.shards import PackedImages, Place, create_array, places, remove_views
from dermtune.table import read_table, table_sha256
from dermtune_bundle.decode import resize
from dermtune_bundle.files import atomic_path

log = logging.getLogger(__name__)

_MODULES = ("dermtune.augmentation", "dermtune.stages.augment", "dermtune_bundle.decode")
_SHOWN, _THUMBNAIL = 6, 112  # images, pixels
_BATCH = 256  # images in flight, so that memory does not grow with their number


class AugmentConfig(Config):
    """How training images are varied."""

    views: Annotated[int, Field(ge=1, le=100)]
    """Views of each training image; with as many as epochs, every epoch sees fresh ones."""
    plain: bool
    """Store the training images unvaried as well, as validation images are; `finetune.folds` needs them."""
    min_scale: Annotated[float, Field(gt=0, le=1)]
    """Smallest share of the image's area that a random crop keeps."""
    color: Annotated[float, Field(ge=0, le=1)]
    """Strength of the changes of brightness, contrast and saturation."""
    hue: Annotated[float, Field(ge=0, le=0.5)]
    """Strength of the change of hue."""
    rotate: Annotated[float, Field(ge=0, le=180)]
    """Largest rotation, in degrees, either way: a lesion has no upright."""


def augment(config: AugmentConfig, *, input_size: int, seed: int, images: Path, out: Path) -> None:
    """Make `config.views` views of each training image, and the plain validation images.

    Raises:
        DataError: the ingested images are missing or damaged.
    """
    from dermtune.figures import contact_sheet, write_figure

    out.mkdir(parents=True, exist_ok=True)
    remove_views(out)
    (out / "views.json").unlink(missing_ok=True)  # it vouches for what lies beside it
    shape = (input_size, input_size, 3)
    train, val = (places(read_table(images / "images.parquet", split=split)) for split in ("train", "val"))
    stored = (config.views + config.plain) * len(train) + len(val)
    require_room("augment", array_bytes(stored, shape, "uint8"), out)
    shown = range(0, len(train), max(1, len(train) // _SHOWN))[:_SHOWN]
    thumbnails = []
    # spawn: the parent may already run threads of other libraries, which a fork would copy half-way
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool, ExitStack() as files:
        names = [f"train-{view:02d}.npy" for view in range(config.views)]
        arrays = [
            files.enter_context(create_array(out / name, (len(train), *shape), "uint8")) for name in names
        ]
        work = partial(_views_of, config=config, images=images, size=input_size, seed=seed)
        for row, views in enumerate(progress(_map(pool, work, train), "augment", len(train))):
            for array, view in zip(arrays, views, strict=True):
                array.append(view[None])
            if row in shown:
                thumbnails.append([resize(view, _THUMBNAIL) for view in views[:8]])
        unvaried = {"val.npy": val} | ({"plain.npy": train} if config.plain else {})
        for name, rows in unvaried.items():
            array = files.enter_context(create_array(out / name, (len(rows), *shape), "uint8"))
            for image in _map(pool, partial(_plain, images=images, size=input_size), rows):
                array.append(image[None])
    sheet = contact_sheet(
        thumbnails, [train[row].image_id for row in shown], "Augmented views, one image a row"
    )
    write_figure(sheet, out / "contact_sheet.png")
    made_from = {
        "images_sha256": table_sha256(images),
        "seed": seed,
        **config.model_dump(),
        "code_sha256": code_fingerprint(*_MODULES),
        "versions": versions("albumentations", "pillow", "numpy"),
    }
    with atomic_path(out / "views.json") as temporary:
        temporary.write_text(json.dumps(made_from, indent=2) + "\n", encoding="utf-8")
    log.info("%d training images, %d views each; %d validation images", len(train), config.views, len(val))


def _map(
    pool: ProcessPoolExecutor, work: "partial[NDArray[np.uint8]]", places: list[Place]
) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(places), _BATCH):
        yield from pool.map(work, places[start : start + _BATCH], chunksize=8)


def _views_of(
    place: Place, *, config: AugmentConfig, images: Path, size: int, seed: int
) -> NDArray[np.uint8]:
    from dermtune.augmentation import Variation, make_views

    variation = Variation(config.min_scale, config.color, config.hue, config.rotate)
    image = PackedImages(images).decode(place)
    return make_views(image, variation, views=config.views, image_id=place.image_id, size=size, seed=seed)


def _plain(place: Place, *, images: Path, size: int) -> NDArray[np.uint8]:
    return resize(PackedImages(images).decode(place), size)
