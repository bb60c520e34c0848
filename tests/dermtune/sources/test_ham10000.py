from pathlib import Path

import pytest

from dermtune.errors import SourceError
from dermtune.sources.ham10000 import ham10000

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization\n"
ROWS = "HAM_1,ISIC_1,nv,histo,45.0,male,back\nHAM_1,ISIC_2,nv,histo,,unknown,unknown\n"
REAL = Path(__file__).parents[4] / "shared" / "data" / "ham10000"


def lay_out(root: Path, folders: dict[str, list[str]], *, table: str = "HAM10000_metadata.csv") -> Path:
    for folder, names in folders.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / f"{name}.jpg").write_bytes(name.encode())
    (root / table).write_text(HEADER + ROWS, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    "folders",
    [
        {"images": ["ISIC_1", "ISIC_2"]},
        {"HAM10000_images_part_1": ["ISIC_1"], "HAM10000_images_part_2": ["ISIC_2"]},
    ],
)
@pytest.mark.parametrize("table", ["HAM10000_metadata.csv", "HAM10000_metadata"])
def test_the_official_layouts_are_read(tmp_path: Path, folders: dict[str, list[str]], table: str) -> None:
    first, second = ham10000(lay_out(tmp_path, folders, table=table))
    assert (first.image_id, first.lesion_id, first.label, first.dx_type) == ("ISIC_1", "HAM_1", "nv", "histo")
    assert (first.age, first.sex, first.site) == (45.0, "male", "back")
    assert (second.age, second.sex, second.site) == (None, None, None)
    assert (first.content(), second.content()) == (b"ISIC_1", b"ISIC_2")
    assert first.path == f"{next(iter(folders))}/ISIC_1.jpg"


def test_dataverses_tab_separated_table_and_capital_suffixes_are_read(tmp_path: Path) -> None:
    lay_out(tmp_path, {"images": ["ISIC_1"]}, table="HAM10000_metadata.tab")
    (tmp_path / "images" / "ISIC_2.JPG").write_bytes(b"ISIC_2")
    (tmp_path / "HAM10000_metadata.tab").write_text((HEADER + ROWS).replace(",", "\t"))
    first, second = ham10000(tmp_path)
    assert (first.label, first.age, first.site) == ("nv", 45.0, "back")
    assert second.content() == b"ISIC_2"


def test_quoted_newlines_and_short_rows_are_read_and_other_encodings_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, {"images": ["ISIC_1", "ISIC_2"]})
    table = tmp_path / "HAM10000_metadata.csv"
    table.write_text(HEADER + 'HAM_1,ISIC_1,nv,histo,45.0,male,"back,\nlower"\nHAM_1,ISIC_2,nv\n')
    first, second = ham10000(tmp_path)
    assert first.site == "back,\nlower"
    assert (second.label, second.age, second.dx_type) == ("nv", None, None)
    table.write_bytes((HEADER + ROWS).encode() + b"\xff\n")
    with pytest.raises(SourceError, match=r"HAM10000_metadata\.csv: not a readable table"):
        ham10000(tmp_path)


def test_an_image_that_the_table_lacks_is_listed_without_a_label(tmp_path: Path) -> None:
    images = ham10000(lay_out(tmp_path, {"images": ["ISIC_1", "ISIC_2", "ISIC_9"]}))
    assert [(image.image_id, image.label) for image in images[2:]] == [("ISIC_9", "")]


def test_a_row_without_a_file_is_listed_and_fails_only_when_read(tmp_path: Path) -> None:
    _, second = ham10000(lay_out(tmp_path, {"images": ["ISIC_1"]}))
    with pytest.raises(FileNotFoundError):
        second.content()


def test_an_image_id_with_a_path_does_not_leave_the_folder(tmp_path: Path) -> None:
    lay_out(tmp_path / "root", {"images": ["ISIC_1"]})
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "root" / "HAM10000_metadata.csv").write_text(HEADER + ROWS.replace("ISIC_2", "../../secret"))
    hostile = ham10000(tmp_path / "root")[1]
    with pytest.raises(FileNotFoundError):
        hostile.content()


def test_windows_newlines_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    lay_out(tmp_path, {"images": ["ISIC_1", "ISIC_2"]})
    plain = [(image.image_id, image.site) for image in ham10000(tmp_path)]
    (tmp_path / "HAM10000_metadata.csv").write_text(
        (HEADER + ROWS).replace("\n", "\r\n"), encoding="utf-8-sig"
    )
    assert [(image.image_id, image.site) for image in ham10000(tmp_path)] == plain


def test_a_missing_table_folder_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no HAM10000_metadata\.csv; set ingest\.path"):
        ham10000(tmp_path)
    (tmp_path / "HAM10000_metadata.csv").write_text("lesion_id,image_id\n")
    with pytest.raises(SourceError, match=r"no \.jpg in images"):
        ham10000(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "ISIC_1.jpg").write_bytes(b"")
    with pytest.raises(SourceError, match="no column dx, dx_type"):
        ham10000(tmp_path)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data/ham10000")
def test_the_real_archive_is_listed_whole() -> None:
    images = ham10000(REAL)
    assert len(images) == 8514
    assert len({image.lesion_id for image in images}) == 6361
    assert {image.label for image in images} == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
    assert images[0].content()[:2] == b"\xff\xd8"
