"""Which group each image belongs to: by the image table, or by what the image shows."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.appearance import MASKS, Appearance, appearance, unpack_mask
from dermtune.progress import progress
from dermtune.shards import PackedImages, Place, open_array, places
from dermtune.subgroups import groups_of
from dermtune.table import read_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dermtune.recipe import Attribute


def read_groups(images: Path, table: pd.DataFrame, attributes: "Sequence[Attribute]") -> pd.DataFrame:
    """The group of each image in each attribute, (N, attributes) text; what is missing is `not given`.

    Images are looked at only where an attribute must be estimated: lesion size, and skin tone that the source
    does not give.

    Args:
        images: what ingest wrote.
        table: N rows of its image table.
        attributes: which.

    Raises:
        DataError: the images are missing or damaged.
    """
    tone_is_missing = bool(table["skin_tone"].isna().any())
    estimated = "lesion_size" in attributes or ("skin_tone" in attributes and tone_is_missing)
    seen = _look(images, table) if estimated else [Appearance(np.nan, None)] * len(table)
    looks = {"lesion_share": [one.lesion_share for one in seen], "ita": [one.ita for one in seen]}
    numbered = table.reset_index(drop=True)
    return groups_of(numbered.assign(**pd.DataFrame(looks, dtype=float)))[[*attributes]]


def _look(images: Path, table: pd.DataFrame) -> list[Appearance]:
    everything = read_table(images / "images.parquet")
    masks = open_array(images / MASKS, rows=len(everything))
    row_of = pd.Series(everything.index, everything["image_id"])
    packed = PackedImages(images)

    def look(one: tuple[Place, NDArray[np.uint8] | None]) -> Appearance:
        place, mask = one
        pixels = packed.decode(place)
        return appearance(pixels, None if mask is None else unpack_mask(mask, *pixels.shape[:2]))

    rows = row_of[table["image_id"]].to_numpy(int)
    given = [masks[row] if has else None for row, has in zip(rows, table["has_mask"], strict=True)]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return [*progress(pool.map(look, zip(places(table), given, strict=True)), "appearance", len(table))]
    finally:
        pool.shutdown(cancel_futures=True)  # after the first bad image, the rest need not be read
