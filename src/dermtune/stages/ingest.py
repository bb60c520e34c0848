"""ingest: a source's images in; checked, grouped, split and packed images with their table out.

Every image that the source lists ends in exactly one of images.parquet and quarantine.parquet.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from dermtune.appearance import MASKS, NO_MASK
from dermtune.config import Config
from dermtune.duplicates import find_duplicates
from dermtune.errors import ConfigError
from dermtune.labels import lesion_class, require_class
from dermtune.leakage import PRINTS
from dermtune.metadata import metadata_aurocs, suspicious
from dermtune.progress import progress
from dermtune.quality import check_images, refuse_bad_source
from dermtune.shards import ImagePacker, PackedImages, create_array, places
from dermtune.sources import SourceImage
from dermtune.sources.listing import SourceName, list_images
from dermtune.splits import assign_splits, join_pairs, read_splits
from dermtune.table import SOURCE_COLUMNS, write_table
from dermtune_bundle.decode import resize
from dermtune_bundle.files import atomic_path

log = logging.getLogger(__name__)

_PER_CLASS, _THUMBNAIL = 8, 112  # images, pixels


class SplitConfig(Config):
    """Shares of the lesions (of the patients, where known), the same for each class."""

    train: Annotated[float, Field(gt=0, lt=1)]
    val: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:  # noqa: PLR2004 (rounding)
            raise ValueError("train, val and test must sum to 1")
        return self


class IngestConfig(Config):
    """Where the images come from and how they are split."""

    source: SourceName
    path: str
    """The source's folder; it may lie outside the project."""
    synthetic_lesions: Annotated[int, Field(ge=40)]
    label_map: dict[str, Annotated[str, AfterValidator(require_class)]]
    """From a source's label to the task's class; labels not named stay as they are."""
    max_quarantine: Annotated[float, Field(ge=0, le=1)]
    """Largest share of the files found that may be unusable before ingest stops."""
    split: SplitConfig


def ingest(config: IngestConfig, *, seed: int, out: Path, splits: Path | None = None) -> None:
    """Check, group, split and pack a source's images.

    Args:
        config: where they come from.
        seed: of the split.
        out: the folder to write.
        splits: file of `keep_splits`: its images, and what belongs to their lesions, stay where they are.

    Raises:
        SourceError: the source is not laid out as expected, or too many of its files are unusable.
        ConfigError: `label_map` names a label that the source lacks.
        DataError: a class has too few lesions to be split, or `splits` is damaged.
    """
    from dermtune.figures import contact_sheet, write_figure

    kept = read_splits(splits) if splits else {}
    out.mkdir(parents=True, exist_ok=True)
    table, prints, masks, quarantined = read_source(config, seed=seed, out=out)
    pairs = find_duplicates(prints)
    with create_array(out / PRINTS, prints.shape, "uint8") as array:
        array.append(prints)
    with create_array(out / MASKS, masks.shape, "uint8") as array:
        array.append(masks)
    shares = (config.split.train, config.split.val, config.split.test)
    copies = join_pairs(len(table), ((pair.first, pair.second) for pair in pairs))
    rng = np.random.default_rng(seed)
    table = assign_splits(table, copies=copies.tolist(), shares=shares, rng=rng, kept=kept)
    if pairs:
        first, second = (table["image_id"][row] for row in pairs[0][:2])
        log.info("%d pairs of copies are kept together, such as %s and %s", len(pairs), first, second)
    write_table(table, out / "images.parquet")
    told = metadata_aurocs(table)
    with atomic_path(out / "metadata.csv") as temporary:
        told.to_csv(temporary, index=False, float_format="%.4f")
    for row in suspicious(told).itertuples():
        message = "warning: %s alone tells %s (AUROC %.3f)"
        log.warning(message, row.meaning, row.told, row.highest)
    with atomic_path(out / "quarantine.parquet") as temporary:
        columns = ["image_id", "path", "reason"]
        pd.DataFrame(quarantined, columns=columns).astype("string").to_parquet(temporary, index=False)
    counts = {
        split: rows["label"].value_counts().sort_index().to_dict() for split, rows in table.groupby("split")
    }
    read = len(table) + len(quarantined)
    summary = {"read": read, "kept": len(table), "quarantined": len(quarantined), "images": counts}
    summary |= {"copies": len(pairs), "masks": int(table["has_mask"].sum())}
    with atomic_path(out / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    sheet = contact_sheet(*_examples(table, out), "Ingested images, one lesion each, by class")
    write_figure(sheet, out / "contact_sheet.png")
    log.info("%d images listed: %d kept, %d set aside", read, len(table), len(quarantined))


def read_source(
    config: IngestConfig, *, seed: int, out: Path
) -> tuple[pd.DataFrame, NDArray[np.uint8], NDArray[np.uint8], list[dict[str, str]]]:
    """Check and pack a source's images.

    Returns:
        Their table, without splits, prints and masks (N, …), and what was set aside.

    Raises:
        SourceError: the source is not laid out as expected, or too many of its files are unusable.
        ConfigError: `label_map` names a label that the source lacks.
    """
    listed = list_images(
        config.source, Path(config.path), synthetic_lesions=config.synthetic_lesions, seed=seed
    )
    kept, prints, masks, quarantined = _check_and_pack(map_labels(listed, config.label_map), out)
    refuse_bad_source(len(kept), quarantined, allowed=config.max_quarantine)
    table = pd.DataFrame(kept).assign(source=config.source)
    return table, np.stack(prints), np.stack(masks), quarantined


def map_labels(images: list[SourceImage], label_map: dict[str, str]) -> list[SourceImage]:
    """Give images the task's classes.

    Raises:
        ConfigError: `label_map` names a label that no image has, such as a misspelt one.
    """
    labels = {image.label for image in images}
    if unknown := sorted(set(label_map) - labels):
        raise ConfigError(
            f"ingest.label_map: the source has no label {', '.join(map(repr, unknown))}; its labels are"
            f" {', '.join(sorted(labels - {''}))}"
        )
    return [replace(image, label=label_map.get(image.label, image.label)) for image in images]


def _check_and_pack(
    images: list[SourceImage], out: Path
) -> tuple[list[dict[str, Any]], list[NDArray[np.uint8]], list[NDArray[np.uint8]], list[dict[str, str]]]:
    kept, prints, masks, quarantined = [], [], [], []
    checks = progress(check_images(images), "ingest", len(images))
    with ImagePacker(out) as packer:
        for image, checked in zip(images, checks, strict=True):
            if isinstance(checked, str):
                quarantined.append({"image_id": image.image_id, "path": image.path, "reason": checked})
                continue
            shard, offset, size = packer.add(image.image_id + Path(image.path).suffix, checked.data)
            row = {column: getattr(image, column) for column in SOURCE_COLUMNS}
            row |= {"sha256": checked.sha256, "width": checked.width, "height": checked.height}
            row |= {"shard": shard, "offset": offset, "size": size, "has_mask": checked.mask is not None}
            kept.append(row)
            prints.append(checked.print)
            masks.append(NO_MASK if checked.mask is None else checked.mask)
    return kept, prints, masks, quarantined


def _examples(table: pd.DataFrame, folder: Path) -> tuple[list[list[NDArray[np.uint8]]], list[str]]:
    packed = PackedImages(folder)
    rows = {
        lesion_class(str(label)).title: [
            resize(packed.decode(place), _THUMBNAIL)
            for place in places(images.drop_duplicates("lesion_id").head(_PER_CLASS))
        ]
        for label, images in table.groupby("label")
    }
    return list(rows.values()), list(rows)
