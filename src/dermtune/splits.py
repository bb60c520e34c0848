"""Group images that must not part, and split the groups by class; a lesion stays where it once was."""

import csv
import hashlib
import re
import warnings
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dermtune.config import Config
from dermtune.errors import DataError
from dermtune.table import SPLITS
from dermtune_bundle.files import atomic_path

_HEADER = ("sha256", "split")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DECADE = 10  # years


class SplitConfig(Config):
    """Shares of the lesions (of the patients, where known), the same for each class."""

    train: Annotated[float, Field(gt=0, lt=1)]
    val: Annotated[float, Field(gt=0, lt=1)]
    test: Annotated[float, Field(gt=0, lt=1)]
    assign: Literal["shares", "hash"]
    """`shares`: each class by exactly these; `hash`: by the patient's or else the lesion's id alone, so
    that none moves unless images that come in join it to another; the shares are only about these."""
    stratify: list[Literal["site", "age"]]
    """With `shares`, spread evenly over these as well."""
    official: bool
    """Does the source's own split count, where it has one?"""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:  # noqa: PLR2004 (rounding)
            raise ValueError("train, val and test must sum to 1")
        return self

    @property
    def shares(self) -> tuple[float, float, float]:
        """Of train, val and test."""
        return self.train, self.val, self.test


def join_groups(*keys: Sequence[Hashable | None]) -> NDArray[np.int64]:
    """Join images that share any key, transitively: a patient's two lesions, a lesion's two patients.

    Args:
        keys: sequences of one length N, such as lesion ids, patient ids, file hashes; None joins nothing.

    Returns:
        (N,) int64 group numbers, in order of first appearance.
    """
    count = len(keys[0])
    first_seen: dict[tuple[int, Hashable], int] = {}
    links = [
        (row, first_seen.setdefault((kind, key), row))
        for kind, column in enumerate(keys)
        for row, key in enumerate(column)
        if key is not None
    ]
    group = join_pairs(count, links)
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    groups: NDArray[np.int64] = np.argsort(np.argsort(first))[inverse]
    return groups


def join_pairs(count: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Group numbers (N,) of N images, of which pairs belong together, transitively."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, others = np.array([*pairs], dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, others)), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    joined: NDArray[np.int64] = group.astype(np.int64)
    return joined


def split_groups(
    groups: NDArray[np.int64],
    labels: Sequence[str],
    *,
    shares: Sequence[float],
    rng: np.random.Generator,
    kept: Sequence[str | None] | None = None,
    closed: Collection[str] = (),
    strata: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Split whole groups into train, val and test, each class by the same shares.

    A group of several classes counts as the rarest of them, so that rare classes are spread evenly. A group
    with an image whose split is kept goes where that image is; with several, to train before val before test,
    for what a model may have learned from is never tested on.

    Args:
        groups: (N,) group of each image.
        labels: class of each image.
        shares: of train, val and test; they sum to one.
        rng: draws the order of the groups.
        kept: N splits that were given before; None: a new image.
        closed: splits that no new image comes to.
        strata: N keys over which each class is spread evenly.

    Returns:
        (N,) split of each image.

    Raises:
        DataError: a class has too few groups to be in every split, or those kept leave one without it.
    """
    names, label = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    images_of_class = np.bincount(label)
    ids, group = np.unique(groups, return_inverse=True)
    rarest_first = np.lexsort((images_of_class[label], group))
    class_of_group = label[rarest_first][np.searchsorted(group[rarest_first], np.arange(len(ids)))]
    split_of_group = np.zeros(len(ids), dtype="<U5")
    for split in reversed(SPLITS):
        split_of_group[group[[one == split for one in kept or [None] * len(group)]]] = split
    for index, name in enumerate(names):
        of_class = class_of_group == index
        members = rng.permutation(np.flatnonzero(of_class & (split_of_group == "")))
        there = np.array([(split_of_group[of_class] == split).sum() for split in SPLITS])
        wanted = np.maximum(_allocate(int(of_class.sum()), shares, str(name)) - there, 0)
        wanted[[split in closed for split in SPLITS]] = 0
        counts = _share_out(len(members), wanted if wanted.any() else np.array([1, 0, 0]))
        if strata is None:
            split_of_group[members] = np.repeat(SPLITS, counts)
        else:
            stratum = np.asarray(strata)[rarest_first][np.searchsorted(group[rarest_first], members)]
            split_of_group[members[np.argsort(stratum, kind="stable")]] = _interleaved(counts)
        if lacking := set(SPLITS) - set(split_of_group[of_class]):
            raise DataError(
                f"class {str(name)!r}: the splits that are kept leave it no lesion of"
                f" {', '.join(sorted(lacking))}; add images, remove some of its lines from that file, or set"
                " ingest.split.official: false"
            )
    return split_of_group[group]


def _interleaved(counts: NDArray[np.int64]) -> list[str]:
    """So many of each split, evenly spaced: any part of the row has about the same shares."""
    due = [((place + 0.5) / count, split) for count, split in zip(counts, SPLITS, strict=True)
           for place in range(count)]  # fmt: skip
    return [split for _, split in sorted(due)]


def hash_groups(
    groups: NDArray[np.int64], keys: Sequence[str], *, shares: Sequence[float]
) -> NDArray[np.str_]:
    """Split whole groups by the least hash of their keys alone: what else there is changes nothing.

    Args:
        groups: (N,) group of each image.
        keys: N names, such as a source and a lesion.
        shares: of train, val and test, which are met about.

    Returns:
        (N,) split of each image.
    """
    hashed = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") for key in keys]
    least = pd.Series(hashed).groupby(np.asarray(groups)).transform("min").to_numpy() / 2**48
    return np.array(SPLITS)[np.searchsorted(np.cumsum(shares)[:-1], least, side="right")]


def _allocate(count: int, shares: Sequence[float], name: str) -> NDArray[np.int64]:
    """Share `count` groups out by largest remainder, at least one to each split."""
    if count < len(shares):
        raise DataError(
            f"class {name!r} has {count} lesions or patients of its own; it needs at least {len(shares)}, one"
            " each for train, val and test: add images, or join it with another class by ingest.label_map"
        )
    return _share_out(count - len(shares), np.asarray(shares)) + 1


def _share_out(count: int, weights: NDArray[Any]) -> NDArray[np.int64]:
    """Whole numbers that sum to `count`, in proportion to the weights, by largest remainder."""
    exact = weights * (count / max(weights.sum(), 1e-9))
    parts: NDArray[np.int64] = np.floor(exact + 1e-9).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: count - parts.sum()]] += 1
    return parts


def assign_splits(
    table: pd.DataFrame,
    *,
    copies: Sequence[Hashable],
    config: SplitConfig,
    seed: int,
    kept: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Fill in `group_id` and `split`: images of one lesion, patient, file or photograph stay together.

    Where the source has a test split of its own, no other image comes to it; where it has no validation
    split, that is taken from its training images.

    Args:
        table: with lesion_id, patient_id, sha256, label and `given`, the source's own split, which goes.
        copies: N keys; images that share one are copies of one photograph.
        config: the shares, and what else counts.
        seed: draws the order of the groups.
        kept: splits that were given before, by SHA-256 of the image.

    Raises:
        DataError: as `split_groups`.
    """
    groups = group_images(table, copies)
    given = [str(split) if config.official and pd.notna(split) else None for split in table["given"]]
    closed = {split for split in given if split} & {"val", "test"}
    if "test" in closed and "val" not in closed:
        given = [None if split == "train" else split for split in given]
    before = [
        (kept or {}).get(str(sha256)) or split for sha256, split in zip(table["sha256"], given, strict=True)
    ]
    labels = table["label"].tolist()
    if config.assign == "hash":
        who = table["patient_id"].astype("string").fillna(table["lesion_id"].astype("string"))
        keys = (table["source"].astype("string") + "/" + who + f"/{seed}").tolist()
        hashed = hash_groups(groups, keys, shares=_open(config.shares, closed)).tolist()
        # A group may be kept in part: all of it goes where that part is.
        held = pd.Series(groups).isin(groups[[split is not None for split in before]])
        before = [
            split or (None if is_held else one)
            for split, is_held, one in zip(before, held, hashed, strict=True)
        ]
    strata = None
    if config.stratify:
        decades = table.assign(age=table["age"] // _DECADE)[[*config.stratify]].astype("string").fillna("")
        strata = decades.agg("/".join, axis=1).tolist()
    split = split_groups(
        groups,
        labels,
        shares=config.shares,
        rng=np.random.default_rng(seed),
        kept=before,
        closed=closed,
        strata=strata,
    )
    return table.drop(columns=["given", "linked"], errors="ignore").assign(
        group_id=group_names(groups), split=split
    )


def _open(shares: Sequence[float], closed: Collection[str]) -> list[float]:
    """The shares of the splits that new images come to."""
    left = [0.0 if split in closed else share for split, share in zip(SPLITS, shares, strict=True)]
    return [share / sum(left) for share in left]


def read_splits(path: Path) -> dict[str, str]:
    """Splits that were given before, by SHA-256 of the image.

    Raises:
        DataError: the file is missing or damaged; names the line.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = [*csv.reader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file: {error}") from error
    if not lines or tuple(lines[0]) != _HEADER:
        raise DataError(f"{path}: line 1: expected {','.join(_HEADER)}")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(_HEADER) or not _SHA256.fullmatch(line[0]) or line[1] not in SPLITS:
            raise DataError(f"{path}: line {number}: expected a SHA-256 and one of {', '.join(SPLITS)}")
    return dict(lines[1:])


def keep_splits(table: pd.DataFrame, path: Path) -> None:
    """Add the table's images to a file of splits, so that they stay where they are when images come in.

    Raises:
        DataError: the file is damaged.
    """
    kept = read_splits(path) if path.exists() else {}
    kept |= dict(zip(table["sha256"].astype(str), table["split"].astype(str), strict=True))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerows([_HEADER, *sorted(kept.items())])


def group_images(table: pd.DataFrame, copies: Sequence[Hashable]) -> NDArray[np.int64]:
    """Group numbers (N,): images of one lesion, patient, file or photograph stay together.

    Args:
        table: with lesion_id, patient_id and sha256, and `linked` where the listing says more.
        copies: N keys; images that share one are copies of one photograph.
    """
    shared = ["lesion_id", "patient_id", "sha256", *({"linked"} & set(table))]
    keys = table[shared].astype(object)
    return join_groups(copies, *(keys[key].where(keys[key].notna(), None).tolist() for key in keys))


def group_names(groups: NDArray[np.int64]) -> list[str]:
    """`group_id` of group numbers (N,)."""
    return [f"G{group:07d}" for group in groups]


def require_every_class(labels: Sequence[str], groups: Sequence[str], *, folds: int, key: str) -> None:
    """Make sure that each class has as many groups as there are folds, so that every fold can have it.

    Args:
        labels: N class names.
        groups: N groups that must not part.
        folds: how many.
        key: of params.yaml, which says how many.

    Raises:
        DataError: a class has fewer.
    """
    of_class = pd.Series(groups).groupby(np.asarray(labels)).nunique()
    if of_class.min() < folds:
        raise DataError(
            f"{key}: class {of_class.idxmin()!r} has {of_class.min()} training lesions or patients,"
            f" fewer than {folds} folds; lower it"
        )


def assign_folds(labels: Sequence[str], groups: Sequence[str], *, folds: int, seed: int) -> NDArray[np.int64]:
    """Share images out to folds of about the same classes; images of one group share a fold.

    Args:
        labels: N class names.
        groups: N groups that must not part.
        folds: how many.
        seed: draws the shares.

    Returns:
        (N,) number of each image's fold, from 0.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class too rare to be in every fold
        for fold, (_, members) in enumerate(splitter.split(fold_of, labels, groups)):
            fold_of[members] = fold
    return fold_of
