from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermtune.errors import DataError
from dermtune.leakage import find_leaks, require_no_leakage


def make(count: int = 60) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "image_id": [f"I{row}" for row in range(count)],
            "lesion_id": [f"L{row}" for row in range(count)],
            "patient_id": pd.array([None] * count, "string"),
            "sha256": [f"{row:064d}" for row in range(count)],
            "split": np.array(["train", "val", "test"])[np.arange(count) % 3],
        }
    )
    return table, rng.integers(0, 256, (count, 48, 48)).astype(np.uint8)


def test_clean_splits_have_no_leak() -> None:
    assert find_leaks(*make()) == []


@pytest.mark.parametrize(
    ("key", "what"), [("lesion_id", "lesion"), ("patient_id", "patient"), ("sha256", "file")]
)
def test_what_is_shared_across_a_split_is_named(key: str, what: str) -> None:
    table, prints = make()
    table.loc[[3, 6, 11], key] = "shared"  # train, train and test
    assert find_leaks(table, prints) == [f"I3 (train) and I11 (test) are of one {what}"]
    table.loc[11, "split"] = "train"
    assert find_leaks(table, prints) == []


def test_a_flipped_copy_across_a_split_is_named() -> None:
    table, prints = make()
    prints[7] = prints[3][:, ::-1]
    (leak,) = find_leaks(table, prints)
    assert leak.startswith("I3 (train) and I7 (val) show the same photograph (correlation 1.000")


def test_a_planted_leak_stops_a_stage(ingested: Path, tmp_path: Path) -> None:
    require_no_leakage(ingested)
    table = pd.read_parquet(ingested / "images.parquet")
    prints = np.load(ingested / "prints.npy")
    train, test = (int(np.flatnonzero(table["split"] == split)[0]) for split in ("train", "test"))
    prints[test] = prints[train].T
    table.to_parquet(tmp_path / "images.parquet")
    np.save(tmp_path / "prints.npy", prints)
    names = [table["image_id"][row] for row in (train, test)]
    with pytest.raises(DataError, match=rf"{names[0]} \(train\) and {names[1]} \(test\) show the same"):
        require_no_leakage(tmp_path)
