"""ingest: a source's images in; checked, grouped, split and packed images with their table out.

Every image that the source lists ends in exactly one of images.parquet and quarantine.parquet.
"""

import json
import logging
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from dermtune.appearance import MASKS, NO_MASK
from dermtune.choice import choose
from dermtune.config import Config
from dermtune.disk import packed_bytes, require_room
from dermtune.duplicates import SIDE, Pair
from dermtune.engine import LOCAL, ComputeConfig
from dermtune.labels import Task, lesion_class, require_class
from dermtune.leakage import PRINTS
from dermtune.memory import Memory, state_of
from dermtune.places import root_of
from dermtune.privacy import pseudonym, read_key
from dermtune.progress import progress
from dermtune.quality import (
    BY_CHOICE,
    NO_FILE,
    REPEATED,
    CheckedImage,
    check_image,
    check_images,
    check_listing,
    refuse_bad_source,
)
from dermtune.shards import ImagePacker, PackedImages, create_array, open_array, places
from dermtune.sources import SourceImage
from dermtune.sources.files import file_sizes
from dermtune.sources.listing import PartName, SourceName, list_images
from dermtune.splits import SplitConfig, assign_splits, join_groups, join_pairs, read_splits
from dermtune.table import SOURCE_COLUMNS, SPLITS, write_table
from dermtune_bundle.decode import decode, resize
from dermtune_bundle.errors import ImageError
from dermtune_bundle.files import atomic_path
from dermtune_bundle.pictures import to_jpeg

log = logging.getLogger(__name__)

_PER_CLASS, _PER_REASON, _TRIED, _THUMBNAIL = 8, 6, 24, 112  # images, images, images, pixels
_OLDEST = 120  # years


class IngestConfig(Config):
    """Where the images come from, what they are taken for and how they are split."""

    source: SourceName
    path: str
    """The source's folder; it may lie outside the project, or in a store, as s3://bucket/folder."""
    synthetic_lesions: Annotated[int, Field(ge=40)]
    parts: dict[PartName, str]
    """Of source `several`: which sources there are, and the folder below `path` that holds each."""
    columns: dict[str, str]
    """Of source `listed`: from a field, such as lesion_id, to the column of the table that holds it."""
    classes: Task
    """The classes to tell apart; `as_labelled`: those that the labels mean."""
    label_map: dict[str, Annotated[str, AfterValidator(require_class)]]
    """From a source's label to a class, where it is not the one that dermtune.labels knows."""
    unmapped: Literal["error", "drop"]
    """What becomes of an image whose label means none of the classes."""
    licenses: list[str]
    """Licences of images to use, such as CC-BY; none: all images."""
    max_quarantine: Annotated[float, Field(ge=0, le=1)]
    """Largest share of the files found that may be unusable before ingest stops."""
    split: SplitConfig


class CheckedSource(NamedTuple):
    """What there is in a source."""

    table: pd.DataFrame
    """The images that can be used, without groups and splits but with the source's own (`given`) and the key
    of each file (`file`, as of `files.file_key`) and listing groups (`linked`)."""
    quarantined: pd.DataFrame
    """What was set aside: `image_id, path, reason, thumbnail` (JPEG, of the first of each reason that show
    something)."""
    implausible_ages: int
    """How many ages cannot be, and are taken as unknown."""


def ingest(
    config: IngestConfig,
    *,
    seed: int,
    out: Path,
    splits: Path | None = None,
    key: Path | None = None,
    notes: Path | None = None,
    compute: ComputeConfig = LOCAL,
) -> None:
    """Check, group, split and pack a source's images.

    Args:
        config: where they come from.
        seed: of the split.
        out: the folder to write.
        splits: file of `keep_splits`: its images, and what belongs to their lesions, stay where they are.
        key: file of the key by which ids of patients are hashed, made where there is none; None: a key that
            is drawn and forgotten.
        notes: file that tells which images of an earlier run, still in `out`, need not be looked at again.
        compute: where files are checked.

    Raises:
        SourceError: the source is not laid out as expected, or too many of its files are unusable.
        ConfigError: `label_map` names a label that the source lacks, or a label means none of the classes.
        DataError: a class has too few lesions to be split, or `splits` or `key` is damaged.
    """
    kept = read_splits(splits) if splits else {}
    out.mkdir(parents=True, exist_ok=True)
    for half_written in out.glob(".*-*"):  # by a run that was killed; DVC would keep it
        half_written.unlink()
    with closing(Memory.load(notes, out) if notes else Memory({}, out)) as memory:
        table, quarantined, implausible_ages = read_source(
            config, seed=seed, out=out, memory=memory, key=key, compute=compute
        )
        files = table.pop("file").tolist()
        pairs = memory.find_duplicates(open_array(out / PRINTS, rows=len(table)), files)
    copies = join_pairs(len(table), ((pair.first, pair.second) for pair in pairs))
    is_official = config.split.official and bool(table["given"].notna().any())
    table = assign_splits(table, copies=copies.tolist(), config=config.split, seed=seed, kept=kept)
    if pairs:
        first, second = (table["image_id"][row] for row in pairs[0][:2])
        log.info("%d pairs of copies are kept together, such as %s and %s", len(pairs), first, second)
    table = write_table(table, out / "images.parquet")
    described = _describe(config, table, quarantined, pairs, implausible_ages)
    state = state_of(out)
    _write_tables(out, table, quarantined, described, state)
    _write_pages(
        out, table, quarantined, described, pairs, shares=None if is_official else config.split.shares
    )
    if notes:
        memory.remember(notes, state, files, pairs)
    log.info(
        "%d images listed: %d kept, %d set aside",
        *(described[name] for name in ("read", "kept", "quarantined")),
    )


def read_source(
    config: IngestConfig,
    *,
    seed: int,
    out: Path,
    memory: Memory,
    key: Path | None = None,
    compute: ComputeConfig = LOCAL,
) -> CheckedSource:
    """Check and pack a source's images, with their prints and masks, into a folder.

    Raises:
        SourceError: the source is not laid out as expected, or too many of its files are unusable.
        ConfigError: `label_map` names a label that the source lacks, or a label means none of the classes.
        DataError: `key` is damaged.
    """
    listed = list_images(
        config.source,
        root_of(config.path),
        parts=config.parts,
        columns=config.columns,
        lesions=config.synthetic_lesions,
        seed=seed,
    )
    images, left_out = choose(
        listed,
        classes=config.classes,
        label_map=config.label_map,
        drops=config.unmapped == "drop",
        licenses=config.licenses,
    )
    reasons = check_listing(images, left_out)
    usable = [image for image, reason in zip(images, reasons, strict=True) if reason is None]
    require_room("ingest", packed_bytes(file_sizes(usable), beside=SIDE**2 + NO_MASK.nbytes), out)
    checks = progress(_check(usable, memory, compute), "ingest", len(usable))
    table, quarantined = _check_and_pack(images, reasons, checks, out, _key(config, key))
    refuse_bad_source(len(table), quarantined, allowed=config.max_quarantine)
    ages = table["age"].notna() & ~table["age"].between(0, _OLDEST)
    if ages.any():
        log.warning("warning: %d ages outside 0 to %d are taken as unknown", ages.sum(), _OLDEST)
    table["age"] = table["age"].mask(ages)
    aside = pd.DataFrame(quarantined, columns=["image_id", "path", "reason"]).astype("string")
    thumbnails = pd.Series(_thumbnails(images, quarantined), dtype=object)
    return CheckedSource(table, aside.assign(thumbnail=thumbnails), int(ages.sum()))


def _key(config: IngestConfig, key: Path | None) -> bytes:
    if config.source == "synthetic":
        return b"nobody's"
    return read_key(key) if key else secrets.token_bytes(32)


def _check_and_pack(
    images: Sequence[SourceImage],
    reasons: Sequence[str | None],
    checks: Iterator[CheckedImage | str],
    out: Path,
    key: bytes,
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    (out / "images.parquet").unlink(missing_ok=True)  # of other shards, from now on
    linked = _linked(images)
    rows, quarantined, kept = [], [], set()
    with (
        ImagePacker(out) as packer,
        create_array(out / PRINTS, (None, SIDE, SIDE), "uint8") as prints,
        create_array(out / MASKS, (None, *NO_MASK.shape), "uint8") as masks,
    ):
        for image, reason, link in zip(images, reasons, linked, strict=True):
            checked = reason or next(checks)
            if checked == REPEATED and image.image_id not in kept:
                checked = check_image(image)  # the first of that id could not be used
            if isinstance(checked, str):
                quarantined.append({"image_id": image.image_id, "path": image.path, "reason": checked})
                continue
            place = packer.add(image.image_id + checked.suffix, checked.data)
            prints.append(checked.print[None])
            masks.append((NO_MASK if checked.mask is None else checked.mask)[None])
            rows.append(_row(image, checked, place, key) | {"linked": link})
            kept.add(image.image_id)
    for path in set(out.glob("images-*.tar")) - {out / row["shard"] for row in rows}:
        path.unlink()  # of an earlier run, which had more
    return pd.DataFrame(rows), quarantined


def _linked(images: Sequence[SourceImage]) -> list[int]:
    """Groups of all that is listed: an image listed twice joins two lesions, though it is kept once."""
    groups: list[int] = join_groups(
        [image.image_id.casefold() for image in images],
        [image.lesion_id or None for image in images],
        [image.patient_id and (image.source, image.patient_id) for image in images],
    ).tolist()
    return groups


def _check(
    images: Sequence[SourceImage], memory: Memory, compute: ComputeConfig
) -> Iterator[CheckedImage | str]:
    """`check_images`, of what is not known."""
    recalled = [memory.find(image) for image in images]
    new = [image for image, row in zip(images, recalled, strict=True) if row is None]
    checks = check_images(new, compute)
    for row in recalled:
        yield next(checks) if row is None else memory.recall(row)


def _row(
    image: SourceImage, checked: CheckedImage, place: tuple[str, int, int], key: bytes
) -> dict[str, Any]:
    row = {column: getattr(image, column) for column in SOURCE_COLUMNS}
    if image.patient_id is not None:
        row["patient_id"] = pseudonym(key, source=image.source, patient_id=image.patient_id)
    row |= {"sha256": checked.sha256, "width": checked.width, "height": checked.height, "given": image.split}
    row["file"] = checked.file
    row |= dict(zip(("shard", "offset", "size"), place, strict=True))
    row |= dict(zip(("red", "green", "blue"), checked.colour, strict=True))
    return row | {"has_text": checked.has_text, "has_mask": checked.mask is not None}


def _thumbnails(
    images: Sequence[SourceImage], quarantined: Sequence[Mapping[str, str]]
) -> list[bytes | None]:
    """Of the first few of each reason; None where a file shows nothing, as most that cannot be used do."""
    by_id = {(image.image_id, image.path): image for image in images}
    shown: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    thumbnails: list[bytes | None] = []
    for row in quarantined:
        image, reason = by_id[row["image_id"], row["path"]], row["reason"]
        thumbnails.append(None)
        if reason != NO_FILE and shown[reason] < _PER_REASON and tried[reason] < _TRIED:
            tried[reason] += 1
            with suppress(OSError, ImageError):
                pixels = decode(image.content(), name=image.image_id)
                thumbnails[-1] = to_jpeg(resize(pixels, _THUMBNAIL))
                shown[reason] += 1
    return thumbnails


def _describe(
    config: IngestConfig,
    table: pd.DataFrame,
    quarantined: pd.DataFrame,
    pairs: Sequence[Pair],
    implausible_ages: int,
) -> dict[str, Any]:
    """What summary.json holds: nothing is lost, for `read` is `kept` and `quarantined`."""
    counts = {
        split: rows["label"].value_counts().sort_index().to_dict() for split, rows in table.groupby("split")
    }
    return {
        "source": config.source,
        "read": len(table) + len(quarantined),
        "kept": len(table),
        "quarantined": len(quarantined),
        "dropped": int(quarantined["reason"].str.startswith(BY_CHOICE).sum()),
        "images": counts,
        "copies": len(pairs),
        "masks": int(table["has_mask"].sum()),
        "with_text": int(table["has_text"].sum()),
        "implausible_ages": implausible_ages,
    }


def _write_tables(
    out: Path,
    table: pd.DataFrame,
    quarantined: pd.DataFrame,
    described: Mapping[str, Any],
    state: Mapping[str, str],
) -> None:
    from dermtune.croissant import croissant
    from dermtune.data_card import balance
    from dermtune.metadata import metadata_aurocs, suspicious

    told = metadata_aurocs(table)
    for row in suspicious(told).itertuples():
        message = "warning: %s alone tells %s (AUROC %.3f)"
        log.warning(message, row.meaning, row.told, row.highest)
    for name, rows in {"metadata": told, "splits_by_class": balance(table)}.items():
        with atomic_path(out / f"{name}.csv") as temporary:
            rows.to_csv(temporary, index=False, float_format="%.4f")
    with atomic_path(out / "quarantine.parquet") as temporary:
        quarantined.to_parquet(temporary, index=False)
    sized = {name: ((out / name).stat().st_size, sha256) for name, sha256 in state.items()}
    croissant_json = croissant(
        table,
        described,
        table_file=sized["images.parquet"],
        shards={name: sized[name] for name in map(str, table["shard"].unique())},
        name=f"dermtune {described['source']}",
    )
    for name, values in {"summary": described, "croissant": croissant_json}.items():
        with atomic_path(out / f"{name}.json") as temporary:
            text = json.dumps(values, indent=2, ensure_ascii=False)
            temporary.write_text(text + "\n", encoding="utf-8")


def _write_pages(
    out: Path,
    table: pd.DataFrame,
    quarantined: pd.DataFrame,
    described: Mapping[str, Any],
    pairs: Sequence[Pair],
    *,
    shares: tuple[float, ...] | None,
) -> None:
    from dermtune.data_card import SHOWN_FLAGGED, copies_to_show, draw_figures, render_data_card
    from dermtune.figures import contact_sheet, to_png, write_figure

    packed, where = PackedImages(out), places(table)

    def look(row: int) -> bytes:
        return to_jpeg(resize(packed.decode(where[row]), _THUMBNAIL))

    wanted = None if shares is None else dict(zip(map(str, SPLITS), shares, strict=True))
    flagged = np.flatnonzero(table["has_text"])[:SHOWN_FLAGGED]
    card = render_data_card(
        table,
        quarantined,
        described,
        pngs={name: to_png(figure) for name, figure in draw_figures(table, wanted=wanted).items()},
        pairs=copies_to_show(pairs, table, look),
        wanted=wanted,
        flagged={str(table["image_id"][row]): look(int(row)) for row in flagged},
    )
    with atomic_path(out / "data_card.html") as temporary:
        temporary.write_text(card, encoding="utf-8")
    sheet = contact_sheet(*_examples(table, packed), "Ingested images, one lesion each, by class")
    write_figure(sheet, out / "contact_sheet.png")


def _examples(table: pd.DataFrame, packed: PackedImages) -> tuple[list[list[NDArray[np.uint8]]], list[str]]:
    rows = {
        lesion_class(str(label)).title: [
            resize(packed.decode(place), _THUMBNAIL)
            for place in places(images.drop_duplicates("lesion_id").head(_PER_CLASS))
        ]
        for label, images in table.groupby("label")
    }
    return list(rows.values()), list(rows)
