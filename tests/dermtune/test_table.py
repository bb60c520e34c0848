from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermtune.errors import DataError
from dermtune.table import COLUMNS, SPLITS, check_table, classes_of, read_table, write_table


def table_of(*rows: dict[str, object]) -> pd.DataFrame:
    """A valid image table: each given row overrides a plain one."""
    plain = {
        "patient_id": None,
        "label": "nv",
        "split": "train",
        "age": 45.0,
        "sex": "female",
        "site": "back",
        "dx_type": "histo",
        "skin_tone": None,
        "license": None,
        "attribution": None,
        "has_mask": False,
        "has_text": False,
        "red": 180.0,
        "green": 130.5,
        "blue": 120.25,
        "source": "synthetic",
        "path": "a.jpg",
        "sha256": "0" * 64,
        "width": 300,
        "height": 225,
        "shard": "images-000.tar",
        "offset": 512,
        "size": 1000,
    }
    ids = ({"image_id": f"I{n}", "lesion_id": f"L{n}", "group_id": f"G{n}"} for n in range(len(rows)))
    return pd.DataFrame([plain | own | row for own, row in zip(ids, rows, strict=True)])


def test_a_table_keeps_its_values_and_types_through_a_file(tmp_path: Path) -> None:
    table = check_table(table_of({}, {"age": None, "sex": None}, {"split": "test", "label": "mel"}))
    write_table(table, tmp_path / "images.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "images.parquet"), table)


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(table_of({}, {"label": "mel"}), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_one_split_is_read_in_the_tables_order(tmp_path: Path) -> None:
    write_table(table_of({"split": "test"}, {}, {"split": "test"}), tmp_path / "t")
    assert list(read_table(tmp_path / "t", split="test")["image_id"]) == ["I0", "I2"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{}, {"image_id": "I0"}], "image_id occurs twice: I0"),
        ([{"label": None}], "label is empty in row 0"),
        ([{}, {"split": "holdout"}], "unknown split: holdout"),
        ([{"group_id": "G"}, {"group_id": "G", "split": "test"}], "both sides of a split: G"),
        ([{"thickness": 1}], "unknown column thickness"),
    ],
)
def test_a_broken_table_is_refused_naming_what_is_wrong(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_table(table_of(*rows))


def test_a_missing_column_is_refused() -> None:
    with pytest.raises(DataError, match="no column sha256"):
        check_table(table_of({}).drop(columns="sha256"))


@pytest.mark.parametrize("content", [None, b"", b"PAR1 not parquet"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match="re-run ingest"):
        read_table(tmp_path / "t")


@given(st.lists(st.tuples(st.sampled_from(SPLITS), st.sampled_from(["nv", "mel", "bcc"])), min_size=1))
def test_any_table_of_own_groups_is_accepted_and_keeps_every_row(rows: list[tuple[str, str]]) -> None:
    table = check_table(table_of(*({"split": split, "label": label} for split, label in rows)))
    assert list(table) == list(COLUMNS)
    assert list(zip(table["split"], table["label"], strict=True)) == rows
    assert classes_of(table) == sorted({label for _, label in rows})
