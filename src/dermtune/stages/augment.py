"""augment: the ingested images in; augmented views of the training images, plain validation images out."""

import json
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dermtune.config import Config
from dermtune.disk import array_bytes, require_room
from dermtune.engine import LOCAL, ComputeConfig, each
from dermtune.errors import DataError
from dermtune.fingerprint import code_fingerprint, versions
from dermtune.progress import progress
from dermtune.shards import PackedImages, Place, create_rows, open_array, places, remove_views, write_rows
from dermtune.table import read_table, table_sha256
from dermtune_bundle.decode import resize
from dermtune_bundle.files import atomic_path

log = logging.getLogger(__name__)

_MODULES = ("dermtune.augmentation", "dermtune.stages.augment", "dermtune_bundle.decode")
_SHOWN, _THUMBNAIL = 6, 112  # images, pixels
_TOGETHER, _AT_ONCE = 16, 128 << 20  # images in one piece of work, and bytes of their views at most


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


@dataclass(frozen=True)
class Part:
    """Some images that follow each other, and the files of `create_rows` that get them."""

    places: list[Place]
    first: int
    """Their first row."""
    files: list[Path]
    """One a view."""
    vary: bool
    """Else they are only resized, for one file."""


def augment(
    config: AugmentConfig,
    *,
    input_size: int,
    seed: int,
    images: Path,
    out: Path,
    compute: ComputeConfig = LOCAL,
) -> None:
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
    varied = [f"train-{view:02d}.npy" for view in range(config.views)]
    unvaried = {"val.npy": val} | ({"plain.npy": train} if config.plain else {})
    make = partial(_make_augment_part, config, images.absolute(), input_size, seed)
    with ExitStack() as opened:

        def create(name: str, count: int) -> Path:
            return opened.enter_context(create_rows(out / name, (count, *shape), "uint8")).absolute()

        together = max(1, min(_TOGETHER, _AT_ONCE // (config.views * math.prod(shape))))
        parts = _parts(train, together, [create(name, len(train)) for name in varied], vary=True)
        for name, rows in unvaried.items():
            parts += _parts(rows, together, [create(name, len(rows))], vary=False)
        total = sum(len(part.places) for part in parts)
        done = each(compute, make, parts, processes=True)
        written = sum(progress(done, "augment", total, step=together))
        if written != total:
            raise DataError(f"{out}: {written} images written of {total}; run augment again")
    shown = range(0, len(train), max(1, len(train) // _SHOWN))[:_SHOWN]
    views = [open_array(out / name) for name in varied[:8]]
    thumbnails = [[resize(np.array(view[row]), _THUMBNAIL) for view in views] for row in shown]
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


def _parts(places: list[Place], together: int, files: list[Path], *, vary: bool) -> list[Part]:
    starts = range(0, len(places), together)
    return [Part(places[start : start + together], start, files, vary) for start in starts]


def _make_augment_part(config: AugmentConfig, images: Path, size: int, seed: int) -> Callable[[Part], int]:
    return partial(augment_part, config=config, images=PackedImages(images), size=size, seed=seed)


def augment_part(part: Part, *, config: AugmentConfig, images: PackedImages, size: int, seed: int) -> int:
    """Read, vary and write some images; to do it again changes nothing. Gives how many they were."""
    from dermtune.augmentation import Variation, make_views

    def views_of(place: Place) -> NDArray[np.uint8]:
        image = images.decode(place)
        if not part.vary:
            return resize(image, size)[None]
        variation = Variation(config.min_scale, config.color, config.hue, config.rotate)
        return make_views(image, variation, views=config.views, image_id=place.image_id, size=size, seed=seed)

    made = np.stack([views_of(place) for place in part.places])
    for view, file in enumerate(part.files):
        write_rows(file, part.first, [made[:, view]])
    return len(made)
