"""The image table: one row an image, its columns, and what must hold of every row."""

from pathlib import Path
from typing import Literal

import pandas as pd

from dermtune.errors import DataError
from dermtune.fingerprint import file_sha256
from dermtune_bundle.files import atomic_path

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

COLUMNS = {
    "image_id": "string",
    "lesion_id": "string",
    "patient_id": "string",  # a keyed hash of the source's
    "group_id": "string",  # images that share it never part in a split
    "label": "string",
    "split": "string",
    "age": "Float64",  # years
    "sex": "string",
    "site": "string",
    "dx_type": "string",
    "skin_tone": "string",  # Fitzpatrick's type, where the source gives it
    "license": "string",
    "attribution": "string",
    "has_mask": "boolean",  # is its row of masks.npy the source's outline of the lesion?
    "has_text": "boolean",  # letters burned into the picture: a person should look
    "red": "float64",  # mean of the image, 0 to 255
    "green": "float64",
    "blue": "float64",
    "source": "string",
    "path": "string",  # relative to the source's root; for people
    "sha256": "string",  # of the original file's bytes
    "width": "int64",
    "height": "int64",
    "shard": "string",  # the tar that holds the image, without metadata, from `offset`, `size` bytes long
    "offset": "int64",
    "size": "int64",
}
SOURCE_COLUMNS = (
    "image_id",
    "lesion_id",
    "patient_id",
    "label",
    "age",
    "sex",
    "site",
    "dx_type",
    "skin_tone",
    "license",
    "attribution",
    "source",
    "path",
)
_REQUIRED = ("image_id", "lesion_id", "group_id", "label", "split", "shard")


def check_table(table: pd.DataFrame) -> pd.DataFrame:
    """Give the table its columns and types, or say what is wrong with it.

    Raises:
        DataError: a column is missing or unknown, a required value is missing, an image_id occurs twice,
            a split is unknown, or a group lies on both sides of a split.
    """
    if missing := [column for column in COLUMNS if column not in table]:
        raise DataError(f"image table: no column {', '.join(missing)}; re-run ingest")
    if unknown := [str(column) for column in table if column not in COLUMNS]:
        raise DataError(f"image table: unknown column {', '.join(unknown)}; re-run ingest")
    table = table[list(COLUMNS)].astype(COLUMNS).reset_index(drop=True)
    for column in _REQUIRED:
        if table[column].isna().any():
            raise DataError(f"image table: {column} is empty in row {int(table[column].isna().argmax())}")
    if (doubled := table["image_id"].duplicated()).any():
        raise DataError(f"image table: image_id occurs twice: {_first(table['image_id'][doubled])}")
    if (foreign := ~table["split"].isin(SPLITS)).any():
        raise DataError(f"image table: unknown split: {_first(table['split'][foreign])}")
    parted = table.groupby("group_id")["split"].nunique()
    if (parted > 1).any():
        raise DataError(f"image table: groups on both sides of a split: {_first(parted.index[parted > 1])}")
    return table


def write_table(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Check the image table and write it as Parquet; gives it as `read_table` will."""
    checked = check_table(table)
    with atomic_path(path) as temporary:
        checked.to_parquet(temporary, index=False)
    return checked


def read_table(path: Path, *, split: Split | None = None) -> pd.DataFrame:
    """Read and check the image table; with `split`, only that split's rows, in the table's order.

    Raises:
        DataError: the file is missing or is no image table.
    """
    try:
        table = check_table(pd.read_parquet(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable image table; re-run ingest") from error
    return table if split is None else table[table["split"] == split].reset_index(drop=True)


def table_sha256(folder: Path) -> str:
    """SHA-256 of the image table that ingest wrote to a folder: it names every image and its split.

    Raises:
        DataError: there is none.
    """
    path = folder / "images.parquet"
    try:
        return file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; re-run ingest") from error


def classes_of(table: pd.DataFrame) -> list[str]:
    """The task's classes: the table's labels, sorted, so that their order depends on nothing else."""
    return sorted(str(label) for label in table["label"].unique())


def _first(values: "pd.Series[str] | pd.Index[str]") -> str:
    return ", ".join(str(value) for value in values[:5])
