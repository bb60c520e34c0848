from pathlib import Path
from zipfile import ZipFile

import pytest

from dermtune.errors import SourceError
from dermtune.sources.derm7pt import derm7pt

HEADER = "case_num,diagnosis,seven_point_score,location,sex,management,clinic,derm,case_id,notes\n"
ROWS = (
    "1,basal cell carcinoma,0,abdomen,female,excision,NEL/NEL025.JPG,NEL/Nel026.jpg,,\n"
    "2,clark nevus,1,back,male,excision,NEL/Nel027.jpg,NEL/Nel028.JPG,1d171819,\n"
    '3,melanoma (in situ),4,,,excision,NBL/NBL049.JPG,NBL/NBL049.JPG,,"Replaced, clinic"\n'
)
IMAGES = ("NEL/NEL025.JPG", "NEL/Nel026.jpg", "NEL/Nel027.jpg", "NEL/Nel028.JPG", "NBL/NBL049.JPG")


def lay_out(root: Path, *, rows: str = ROWS, splits: tuple[str, str, str] = ("2", "0", "1")) -> Path:
    base = root / "release_v0"
    for name in IMAGES:
        (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "images" / name).write_bytes(name.encode())
    (base / "meta").mkdir()
    (base / "meta" / "meta.csv").write_text(HEADER + rows)
    for name, indexes in zip(("train", "valid", "test"), splits, strict=True):
        (base / "meta" / f"{name}_indexes.csv").write_text(f"indexes\n{indexes}\n")
    return root


def test_the_official_layout_is_read_without_the_clinical_images(tmp_path: Path) -> None:
    first, second, third = derm7pt(lay_out(tmp_path))
    assert (first.image_id, first.lesion_id, first.label) == ("NEL-Nel026", "1", "basal cell carcinoma")
    assert (first.site, first.sex, first.split) == ("abdomen", "female", "val")
    assert first.path == "release_v0/images/NEL/Nel026.jpg"
    assert [image.content() for image in (first, second, third)] == [
        b"NEL/Nel026.jpg",
        b"NEL/Nel028.JPG",
        b"NBL/NBL049.JPG",
    ]
    assert (third.image_id, third.site, third.sex, third.split) == ("NBL-NBL049", None, None, "train")
    assert second.split == "test"


def test_release_v0_itself_and_its_zip_are_read_alike(tmp_path: Path) -> None:
    expected = [image.image_id for image in derm7pt(lay_out(tmp_path / "whole"))]
    assert [image.image_id for image in derm7pt(tmp_path / "whole" / "release_v0")] == expected
    (tmp_path / "packed").mkdir()
    with ZipFile(tmp_path / "packed" / "release_v0.zip", "w") as packed:
        for file in (tmp_path / "whole").rglob("*.*"):
            packed.write(file, file.relative_to(tmp_path / "whole"))
    images = derm7pt(tmp_path / "packed")
    assert [image.image_id for image in images] == expected
    assert images[0].content() == b"NEL/Nel026.jpg"


def test_images_that_the_table_lacks_and_rows_without_a_file_are_listed(tmp_path: Path) -> None:
    lay_out(tmp_path, rows=ROWS + "4,lentigo,1,back,male,excision,,../../secret.jpg,,\n5,lentigo,1,,,,,,,\n")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "release_v0" / "images" / "NEL" / "Nel099.jpg").write_bytes(b"extra")
    *_, fourth, fifth, extra, secret = derm7pt(tmp_path)
    assert (extra.image_id, extra.label, extra.content()) == ("NEL-Nel099", "", b"extra")
    assert (secret.path, secret.label) == ("secret.jpg", "")
    assert (fifth.image_id, fourth.split) == ("case-5", None)
    for image in (fourth, fifth):
        with pytest.raises(FileNotFoundError):
            image.content()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("3", "0", "1"), "train_indexes.csv: '3' is no row of meta.csv, which has 3"),
        (("-1", "0", "1"), "'-1' is no row"),
        (("0", "0", "1"), "valid_indexes.csv: 0 is in train too"),
    ],
)
def test_a_split_that_cannot_be_is_named(tmp_path: Path, splits: tuple[str, str, str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        derm7pt(lay_out(tmp_path, splits=splits))


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no meta\.csv here"):
        derm7pt(tmp_path)
    lay_out(tmp_path)
    (tmp_path / "release_v0" / "meta" / "meta.csv").write_text("case_num,diagnosis\n1,x\n")
    with pytest.raises(SourceError, match="no column clinic, derm"):
        derm7pt(tmp_path)
