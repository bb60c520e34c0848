"""Tables of what was measured, as files that people and plots read."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from dermtune_bundle.files import atomic_path


def write_tables(tables: Mapping[str, pd.DataFrame], out: Path) -> None:
    """Write NAME.csv to a folder for each table, without its index, numbers to six digits."""
    for name, table in tables.items():
        with atomic_path(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
