"""Proof that nothing crosses the splits: no lesion, no patient, no file, and no copy of an image."""

from pathlib import Path

import numpy as np
import pandas as pd

from dermtune.duplicates import find_duplicates
from dermtune.errors import DataError
from dermtune.shards import open_array
from dermtune.table import SPLITS, read_table

PRINTS = "prints.npy"
"""What ingest writes beside the image table: a print an image, in its order."""
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
