import pytest

from dermtune.errors import SourceError
from dermtune.sources.rows import known, number, read_rows, sex, skin_type

ROWS = [{"id": "a", "site": "Rücken"}, {"id": "b", "site": ""}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_every_usual_table_is_read_alike(encoding: str, newline: str, delimiter: str) -> None:
    lines = [("id", "site"), ("a", " Rücken "), ("b",), ("",)]
    text = newline.join(delimiter.join(line) for line in lines)
    assert read_rows(text.encode(encoding), name="t.csv", required=["id"]) == ROWS


def test_quotes_hold_newlines_and_delimiters() -> None:
    (row,) = read_rows(b'id,note\na,"one,\ntwo"\n', name="t.csv")
    assert row["note"] == "one,\ntwo"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"t\.csv: empty"),
        (b"\n , \n", r"t\.csv: empty"),
        (b"id,id\na,b\n", "column id occurs twice"),
        (b"name\na\n", "no column id; its columns are name"),
        (b"id,b\na,b\nc,d,e\n", "row 2 has 3 cells for 2 columns"),
        (b"id\n\x00\xff\xfe\x00", "not a readable table"),
        (b'id\n"' + b"x" * (2 << 20) + b'"\n', "not a readable table: field larger"),
    ],
)
def test_a_table_that_is_broken_is_named_with_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_rows(data, name="t.csv", required=["id"])


@pytest.mark.parametrize("cell", ["", " ", "unknown", "NaN", "N/A", None, "None"])
def test_unknown_is_none(cell: object) -> None:
    assert (known(cell), number(cell), sex(cell), skin_type(cell)) == (None, None, None, None)


def test_cells_are_understood() -> None:
    assert [number(cell) for cell in ("45", "45.0", "85+", "4,5", "inf", "x", 7)] == [
        45, 45, 85, 4.5, None, None, 7,
    ]  # fmt: skip
    assert [sex(cell) for cell in ("F", "female", "MALE", "x")] == ["female", "female", "male", None]
    assert [skin_type(cell) for cell in ("IV", "type ii", "3", "3.0", "7", "2.5")] == [
        "IV", "II", "III", "III", None, None,
    ]  # fmt: skip
