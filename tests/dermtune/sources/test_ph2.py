from pathlib import Path

import openpyxl
import pytest

from dermtune.errors import SourceError
from dermtune.sources.ph2 import ph2

HEADER = ["Image Name", "Histological Diagnosis", "Common Nevus", "Atypical Nevus", "Melanoma", "Asymmetry"]
ROWS = [
    ["IMD002", None, "X", None, None, 0],
    ["IMD003", "Dysplastic Nevus", None, "X", None, 1],
    ["IMD004", "Melanoma", None, None, "X", 2],
]
REAL = Path(__file__).parents[4] / "shared" / "data" / "ph2"


def lay_out(root: Path, rows: list[list[object]], header: list[str] = HEADER) -> Path:
    book = openpyxl.Workbook()
    for row in [[], ["Legends"], header, *rows]:
        book.worksheets[0].append(row)
    book.save(root / "PH2_dataset.xlsx")
    folder = root / "PH2 Dataset images" / "IMD002" / "IMD002_Dermoscopic_Image"
    folder.mkdir(parents=True)
    (folder / "IMD002.bmp").write_bytes(b"pixels")
    return root


def test_the_official_layout_is_read(tmp_path: Path) -> None:
    images = ph2(lay_out(tmp_path, ROWS))
    assert [(image.image_id, image.label, image.dx_type) for image in images] == [
        ("IMD002", "nv", "consensus"),
        ("IMD003", "atypical", "histo"),
        ("IMD004", "mel", "histo"),
    ]
    assert images[0].content() == b"pixels"
    assert images[0].lesion_id == "IMD002"
    with pytest.raises(FileNotFoundError):
        images[1].content()


def test_an_image_that_the_spreadsheet_lacks_is_listed_without_a_label(tmp_path: Path) -> None:
    images = ph2(lay_out(tmp_path, ROWS[1:]))
    assert [(image.image_id, image.label) for image in images[2:]] == [("IMD002", "")]


@pytest.mark.parametrize("marks", [[None, None, None], ["X", None, "X"]])
def test_a_row_without_exactly_one_diagnosis_is_named(tmp_path: Path, marks: list[str | None]) -> None:
    with pytest.raises(SourceError, match=r"IMD005 has \d diagnoses"):
        ph2(lay_out(tmp_path, [*ROWS, ["IMD005", None, *marks, 0]]))


def test_a_missing_or_foreign_spreadsheet_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no PH2_dataset\.xlsx here"):
        ph2(tmp_path)
    (tmp_path / "PH2_dataset.xlsx").write_bytes(b"not a zip")
    with pytest.raises(SourceError, match="not a readable spreadsheet"):
        ph2(tmp_path)
    with pytest.raises(SourceError, match="no header row"):
        ph2(lay_out(tmp_path, ROWS, ["Image Name", "Diagnosis", "a", "b", "c", "d"]))


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data/ph2")
def test_the_real_archive_is_listed_whole() -> None:
    images = ph2(REAL)
    assert len(images) == 200
    labels = [image.label for image in images]
    assert {name: labels.count(name) for name in set(labels)} == {"nv": 79, "atypical": 80, "mel": 40, "": 1}
