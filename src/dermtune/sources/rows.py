"""Tables of labels as hospitals and archives give them: any delimiter, byte order marks, odd encodings."""

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence

from dermtune.errors import SourceError

Row = dict[str, str]

_UNKNOWN = frozenset({"", "unknown", "nan", "na", "n/a", "none", "null", "-", "not available", "missing"})
_SEXES = {"female": "female", "f": "female", "woman": "female", "male": "male", "m": "male", "man": "male"}
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_MAX_CELL = 1 << 20


def read_rows(
    data: bytes, *, name: str, required: Sequence[str] = (), kept: Collection[str] | None = None
) -> list[Row]:
    """Read CSV or TSV: a row a line, cells stripped, missing ones empty.

    Args:
        data: the whole file: UTF-8, UTF-16 with its mark, else Windows-1252.
        name: what error messages call it.
        required: columns that must be there.
        kept: columns to give, of those that are there; None: all.

    Raises:
        SourceError: no table, a column is missing or occurs twice, or a row has more cells than columns.
    """
    lines = _lines(_decode(data, name), name)
    columns = next(lines, None)
    if columns is None:
        raise SourceError(f"{name}: empty")
    if doubled := sorted({column for column in columns if column and columns.count(column) > 1}):
        raise SourceError(f"{name}: column {', '.join(doubled)} occurs twice")
    if lacking := [column for column in required if column not in columns]:
        raise SourceError(f"{name}: no column {', '.join(lacking)}; its columns are {', '.join(columns)}")
    given = {
        place: column for place, column in enumerate(columns) if column and (kept is None or column in kept)
    }
    rows = []
    for number, line in enumerate(lines, start=1):
        if any(line[len(columns) :]):
            raise SourceError(f"{name}: row {number} has {len(line)} cells for {len(columns)} columns")
        rows.append({column: line[place] if place < len(line) else "" for place, column in given.items()})
    return rows


def _lines(text: str, name: str) -> Iterator[list[str]]:
    """The cells of each line that has any."""
    header = text.partition("\n")[0]
    delimiter = max(",;\t|", key=header.count)
    csv.field_size_limit(_MAX_CELL)
    try:
        for line in csv.reader(io.StringIO(text), delimiter=delimiter):
            cells = [cell.strip() for cell in line]
            if any(cells):
                yield cells
    except csv.Error as error:
        raise SourceError(f"{name}: not a readable table: {error}") from error


def _decode(data: bytes, name: str) -> str:
    encoding = next((found for mark, found in _BOMS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8" or b"\x00" in data:
            raise SourceError(f"{name}: not a readable table: {error.reason}") from error
    return data.decode("cp1252", errors="replace")


def known(cell: object) -> str | None:
    """A cell's text; None: empty, or a word for unknown."""
    text = "" if cell is None else str(cell).strip()
    return None if text.casefold() in _UNKNOWN else text


def number(cell: object) -> float | None:
    """A cell's number; `85+` is 85; None: none."""
    text = (known(cell) or "").rstrip("+").replace(",", ".")
    try:
        found = float(text)
    except ValueError:
        return None
    return found if abs(found) < float("inf") else None


def sex(cell: object) -> str | None:
    """`female` or `male`; None: neither is said."""
    return _SEXES.get((known(cell) or "").casefold())


def plain_license(name: str) -> str:
    """A licence's name without version or case: `cc-by-nc` of `CC BY-NC 4.0`, `cc0` of `CC-0 1.0`."""
    words = re.sub(r"[\s-]+", "-", name.strip().casefold()).replace("cc-0", "cc0")
    return re.sub(r"-\d+(\.\d+)*$", "", words)


def skin_type(cell: object) -> str | None:
    """Fitzpatrick's type as `I` to `VI`, of `1` to `6`, `1.0`, `IV` or `Type IV`; None: none."""
    text = (known(cell) or "").upper().replace("TYPE", "").strip()
    romans = ("I", "II", "III", "IV", "V", "VI")
    if text in romans:
        return text
    place = number(text)
    return romans[int(place) - 1] if place is not None and place in {1, 2, 3, 4, 5, 6} else None
