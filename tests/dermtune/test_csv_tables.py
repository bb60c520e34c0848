from pathlib import Path

import pandas as pd

from dermtune.csv_tables import write_tables


def test_each_table_is_a_file_of_its_name(tmp_path: Path) -> None:
    tables = {"one": pd.DataFrame({"area": [1 / 3, 2e-9]}, index=[7, 8]), "none": pd.DataFrame({"a": []})}
    write_tables(tables, tmp_path / "new")
    assert (tmp_path / "new" / "one.csv").read_text() == "area\n0.333333\n2e-09\n"
    assert (tmp_path / "new" / "none.csv").read_text() == "a\n"
