"""Group images that must not part, and split the groups by class."""

import warnings
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from dermtune.errors import DataError
from dermtune.table import SPLITS


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
) -> NDArray[np.str_]:
    """Split whole groups into train, val and test, each class by the same shares.

    A group of several classes counts as the rarest of them, so that rare classes are spread evenly.

    Args:
        groups: (N,) group of each image.
        labels: class of each image.
        shares: of train, val and test; they sum to one.
        rng: draws the order of the groups.

    Returns:
        (N,) split of each image.

    Raises:
        DataError: a class has too few groups to be in every split.
    """
    names, label = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    images_of_class = np.bincount(label)
    ids, group = np.unique(groups, return_inverse=True)
    rarest_first = np.lexsort((images_of_class[label], group))
    class_of_group = label[rarest_first][np.searchsorted(group[rarest_first], np.arange(len(ids)))]
    split_of_group = np.empty(len(ids), dtype="<U5")
    for index, name in enumerate(names):
        members = rng.permutation(np.flatnonzero(class_of_group == index))
        bounds = np.cumsum(_allocate(len(members), shares, str(name)))[:-1]
        for split, part in zip(SPLITS, np.split(members, bounds), strict=True):
            split_of_group[part] = split
    return split_of_group[group]


def _allocate(count: int, shares: Sequence[float], name: str) -> NDArray[np.int64]:
    """Share `count` groups out by largest remainder, at least one to each split."""
    if count < len(shares):
        raise DataError(
            f"class {name!r} has {count} lesions or patients of its own; it needs at least {len(shares)}, one"
            " each for train, val and test: add images, or join it with another class by ingest.label_map"
        )
    exact = np.asarray(shares) * (count - len(shares))
    parts: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    parts[np.argsort(parts - exact, kind="stable")[: count - len(shares) - parts.sum()]] += 1
    return parts + 1


def assign_splits(
    table: pd.DataFrame, *, copies: Sequence[Hashable], shares: Sequence[float], rng: np.random.Generator
) -> pd.DataFrame:
    """Fill in `group_id` and `split`: images of one lesion, patient, file or photograph stay together.

    Args:
        table: with lesion_id, patient_id, sha256 and label.
        copies: N keys; images that share one are copies of one photograph.
        shares: of train, val and test.
        rng: draws the order of the groups.
    """
    groups = group_images(table, copies)
    split = split_groups(groups, table["label"].tolist(), shares=shares, rng=rng)
    return table.assign(group_id=group_names(groups), split=split)


def group_images(table: pd.DataFrame, copies: Sequence[Hashable]) -> NDArray[np.int64]:
    """Group numbers (N,): images of one lesion, patient, file or photograph stay together.

    Args:
        table: with lesion_id, patient_id and sha256.
        copies: N keys; images that share one are copies of one photograph.
    """
    keys = table[["lesion_id", "patient_id", "sha256"]].astype(object)
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
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a class too rare to be in every fold
        for fold, (_, members) in enumerate(splitter.split(fold_of, labels, groups)):
            fold_of[members] = fold
    return fold_of
