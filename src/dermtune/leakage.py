"""Proof that nothing crosses the splits: no lesion, no patient, no file, and no copy of an image."""

from pathlib import Path

import numpy as np
import pandas as pd

from dermtune.duplicates import find_alike, find_duplicates
from dermtune.errors import DataError
from dermtune.shards import open_array
from dermtune.table import SPLITS, read_table

PRINTS = "prints.npy"
"""What ingest writes beside the image table: a print an image, in its order."""
EMBEDDINGS = "embeddings.npy"
"""What calibrate writes: what the frozen layers see of each image that is not of the test split."""
_KEYS = {"lesion_id": "lesion", "patient_id": "patient", "sha256": "file"}
_SHOWN = 5


def require_no_leakage(images: Path) -> None:
    """Make sure that no lesion, patient, file or copy of an image is on both sides of a split.

    What ingest concluded is not trusted: identities come from the table's own columns, copies from prints.

    Args:
        images: the folder that ingest wrote.

    Raises:
        DataError: names the first pairs.
    """
    table = read_table(images / "images.parquet")
    prints = open_array(images / PRINTS, rows=len(table))
    found = find_leaks(table, prints)
    if found:
        more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise DataError(
            f"{images}: images on both sides of a split: {'; '.join(found[:_SHOWN])}{more}; re-run ingest"
        )


def look_alikes(table: pd.DataFrame, prints: np.ndarray, seen: np.ndarray, known: np.ndarray) -> pd.DataFrame:
    """Test images that look like an image of training or validation, though of another lesion by the table.

    Args:
        table: the image table.
        prints: (N, SIDE, SIDE), in its order.
        seen: what the frozen layers see of its test images, (T, C), of length one.
        known: and of the others, (N - T, C).

    Returns:
        `test, other, split, similarity, correlation`: pairs that a person should look at.

    Raises:
        DataError: a pair is surely one photograph; names the first pairs.
    """
    is_test = (table["split"] == "test").to_numpy(bool)
    if len(known) != (~is_test).sum() or len(seen) != is_test.sum():
        raise DataError("embeddings.npy: of other images than those of the image table; re-run calibrate")
    pairs = find_alike(seen, known, prints[is_test], prints[~is_test])
    tests, others = table[is_test]["image_id"].tolist(), table[~is_test]
    names, splits = others["image_id"].tolist(), others["split"].tolist()
    copies = [f"{tests[one.first]} (test) and {names[one.second]}" for one in pairs if one.is_copy()]
    if copies:
        more = f", and {len(copies) - _SHOWN} more" if len(copies) > _SHOWN else ""
        raise DataError(
            f"images on both sides of a split: {'; '.join(copies[:_SHOWN])}{more} show one photograph,"
            " cropped or turned; give them one lesion_id, and re-run ingest"
        )
    rows = [
        (tests[one.first], names[one.second], splits[one.second], one.similarity, one.correlation)
        for one in pairs
    ]
    return pd.DataFrame(rows, columns=["test", "other", "split", "similarity", "correlation"])


def find_leaks(table: pd.DataFrame, prints: np.ndarray) -> list[str]:
    """Each leak in words, such as `a (train) and b (test) are of one lesion`.

    Args:
        table: image_id, lesion_id, patient_id, sha256 and split of N images.
        prints: (N, SIDE, SIDE), as `duplicates.make_print` gives them.
    """
    names = (table["image_id"] + " (" + table["split"] + ")").tolist()
    leaks: dict[tuple[int, int], str] = {}
    for key, what in _KEYS.items():
        known = table[table[key].notna()]
        for _, rows in known.groupby(key)["split"]:
            elsewhere = (rows != rows.iloc[0]).to_numpy()
            if elsewhere.any():
                crossing = int(rows.index[0]), int(rows.index[elsewhere.argmax()])
                leaks.setdefault(crossing, f"are of one {what}")
    splits = [np.flatnonzero(table["split"] == split) for split in SPLITS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        for pair in find_duplicates(prints[splits[one]], prints[splits[other]]):
            crossing = int(splits[one][pair.first]), int(splits[other][pair.second])
            leaks.setdefault(crossing, f"show the same photograph (correlation {pair.correlation:.3f})")
    return [f"{names[first]} and {names[second]} {why}" for (first, second), why in leaks.items()]
