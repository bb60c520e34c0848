"""What the tables and folders of the International Skin Imaging Collaboration have in common."""

from collections.abc import Iterable, Mapping, Sequence

from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.rows import Row, known, number, read_rows

_CONFIRMED_BY = {
    "histopathology": "histo",
    "serial imaging showing no change": "follow_up",
    "single image expert consensus": "consensus",
    "confocal microscopy with consensus dermoscopy": "confocal",
}
_DEEPEST_LEVEL = 5


def read_table(files: SourceFiles, name: str, required: Sequence[str]) -> list[Row]:
    """The rows of one of the files.

    Raises:
        SourceError: it cannot be read, or lacks a required column.
    """
    return read_rows(files.read(name), name=str(files.root / name), required=required)


def one_hot(row: Mapping[str, str], columns: Sequence[str]) -> str:
    """The name of the one column that is 1; empty where none or several are."""
    marked = [column for column in columns if number(row.get(column)) == 1]
    return marked[0] if len(marked) == 1 else ""


def most_specific(row: Mapping[str, str], levels: str, first: str) -> str:
    """The diagnosis as far as it is said.

    Args:
        row: has the columns `iddx_1` to `iddx_5`, from coarse to fine, as far as they go …
        levels: … where this is `iddx_`.
        first: the first level where nothing finer is said: `Benign`, `Malignant`, `Indeterminate` or nothing.
    """
    for level in range(_DEEPEST_LEVEL, 1, -1):
        if found := known(row.get(f"{levels}{level}")):
            return found
    word = first.casefold()
    return f"{word}, not further said" if word in {"benign", "malignant"} else first


def confirmed_by(cell: str | None) -> str | None:
    """`histo`, `follow_up`, `consensus` or `confocal`, of the ISIC's words for them; any other as it is."""
    text = known(cell)
    return _CONFIRMED_BY.get(text.casefold(), text) if text else None


def unlisted(
    files: SourceFiles,
    listed: Iterable[SourceImage],
    *,
    license: str | None = None,  # noqa: A002 - SourceImage's word
    attribution: str | None = None,
) -> list[SourceImage]:
    """The image files that no row names, without a label; lesion masks and second copies are left out."""
    stems = {_stem(image.path) for image in listed}
    found = []
    for name in files.images():
        stem = _stem(name)
        if stem in stems or stem.endswith("_segmentation"):
            continue
        stems.add(stem)
        content = files.content(name)
        found.append(
            SourceImage(stem, stem, "", name, content, license=license, attribution=attribution),
        )
    return found


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rsplit(".", 1)[0]
