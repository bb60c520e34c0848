import pickle
from pathlib import Path
from zipfile import ZipFile

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


def test_quoted_newlines_short_rows_and_windows_1252_are_read(tmp_path: Path) -> None:
    lay_out(tmp_path, {"images": ["ISIC_1", "ISIC_2"]})
    table = tmp_path / "HAM10000_metadata.csv"
    table.write_bytes(
        (HEADER + 'HAM_1,ISIC_1,nv,histo,45.0,male,"back,\nleft é"\nHAM_1,ISIC_2,nv\n').encode("cp1252")
    )
    first, second = ham10000(tmp_path)
    assert first.site == "back,\nleft é"
    assert (second.label, second.age, second.dx_type) == ("nv", None, None)


def test_a_row_with_too_many_cells_stops_with_its_number(tmp_path: Path) -> None:
    lay_out(tmp_path, {"images": ["ISIC_1"]})
    (tmp_path / "HAM10000_metadata.csv").write_text(HEADER + ROWS.replace("back", "back,arm"))
    with pytest.raises(SourceError, match=r"HAM10000_metadata\.csv: row 1 has 8 cells for 7 columns"):
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


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_licence_and_attribution_are_said(tmp_path: Path) -> None:
    for image in ham10000(lay_out(tmp_path, {"images": ["ISIC_1", "ISIC_9"]})):
        assert image.license == "CC-BY-NC-4.0"
        assert "10.1038/sdata.2018.161" in (image.attribution or "")


@pytest.mark.parametrize("folder", ["masks", "HAM10000_segmentations_lesion_tschandl"])
def test_masks_are_given_and_are_no_images(tmp_path: Path, folder: str) -> None:
    lay_out(tmp_path, {"images": ["ISIC_1", "ISIC_2"]})
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "ISIC_1_segmentation.png").write_bytes(b"mask")
    first, second = ham10000(tmp_path)
    assert first.mask is not None
    assert first.mask() == b"mask"
    assert second.mask is None


def test_dataverses_zips_are_read_as_they_are_and_its_test_images_are_the_test_split(tmp_path: Path) -> None:
    lay_out(tmp_path, {}, table="HAM10000_metadata")
    zipped(tmp_path / "HAM10000_images_part_1.zip", {"ISIC_1.jpg": b"1"})
    zipped(tmp_path / "HAM10000_images_part_2.zip", {"ISIC_2.jpg": b"2"})
    zipped(
        tmp_path / "ISIC2018_Task3_Test_Images.zip",
        {"ISIC2018_Task3_Test_Images/ISIC_3.jpg": b"3", "__MACOSX/._ISIC_3.jpg": b"no"},
    )
    (tmp_path / "ISIC2018_Task3_Test_GroundTruth.csv").write_text(
        HEADER.replace("\n", ",dataset\n") + "HAMTEST_1,ISIC_3,mel,histo,70.0,female,face,rosendahl\n"
    )
    images = ham10000(tmp_path)
    assert [(one.image_id, one.split, one.content()) for one in images] == [
        ("ISIC_1", "train", b"1"),
        ("ISIC_2", "train", b"2"),
        ("ISIC_3", "test", b"3"),
    ]
    assert (images[2].lesion_id, images[2].label, images[2].site) == ("HAMTEST_1", "mel", "face")
    assert pickle.loads(pickle.dumps(images[2].content))() == b"3"  # noqa: S301 - as worker processes get it


def test_without_test_images_there_is_no_official_split(tmp_path: Path) -> None:
    lay_out(tmp_path, {"images": ["ISIC_1", "ISIC_2"]})
    (tmp_path / "ISIC2018_Task3_Test_GroundTruth.csv").write_text("image_id,dx\nISIC_3,mel\n")
    images = ham10000(tmp_path)
    assert [(one.image_id, one.split) for one in images] == [
        ("ISIC_1", None),
        ("ISIC_2", None),
        ("ISIC_3", None),
    ]


ISIC_HEADER = "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n"


def test_isic_2018s_layout_is_read_packed_and_unpacked(tmp_path: Path) -> None:
    truth = "ISIC2018_Task3_{0}_GroundTruth/ISIC2018_Task3_{0}_GroundTruth.csv"
    zipped(
        tmp_path / "ISIC2018_Task3_Training_GroundTruth.zip",
        {
            truth.format("Training"): (
                ISIC_HEADER
                + "ISIC_1,0.0,1.0,0.0,0.0,0.0,0.0,0.0\nISIC_2,0.0,0.0,0.0,1.0,0.0,0.0,0.0\n"
                + "ISIC_3,1.0,1.0,0.0,0.0,0.0,0.0,0.0\nISIC_4,0.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
            ).encode()
        },
    )
    (tmp_path / "ISIC2018_Task3_Training_LesionGroupings.csv").write_text(
        "image,lesion_id,diagnosis_confirm_type\nISIC_1,HAM_7,serial imaging showing no change\n"
        "ISIC_2,HAM_8,histopathology\nISIC_3,HAM_9,single image expert consensus\n"
    )
    folder = tmp_path / "ISIC2018_Task3_Training_Input"
    folder.mkdir()
    for number in range(1, 5):
        (folder / f"ISIC_{number}.jpg").write_bytes(b"%d" % number)
    for part, row in (("Validation", "ISIC_5,0,0,0,0,0,1,0\n"), ("Test", "ISIC_6,1.0,0,0,0,0,0,0\n")):
        path = tmp_path / truth.format(part)
        path.parent.mkdir()
        path.write_text(ISIC_HEADER + row)
        zipped(
            tmp_path / f"ISIC2018_Task3_{part}_Input.zip",
            {f"ISIC2018_Task3_{part}_Input/{row[:6]}.jpg": row[5:6].encode()},
        )
    images = ham10000(tmp_path)
    assert [(one.image_id, one.lesion_id, one.label, one.dx_type, one.split) for one in images] == [
        ("ISIC_1", "HAM_7", "NV", "follow_up", "train"),
        ("ISIC_2", "HAM_8", "AKIEC", "histo", "train"),
        ("ISIC_3", "HAM_9", "", "consensus", "train"),
        ("ISIC_4", "ISIC_4", "", None, "train"),
        ("ISIC_5", "ISIC_5", "DF", None, "val"),
        ("ISIC_6", "ISIC_6", "MEL", None, "test"),
    ]
    assert [one.content() for one in images] == [b"1", b"2", b"3", b"4", b"5", b"6"]


def test_an_isic_2018_table_without_a_class_is_named(tmp_path: Path) -> None:
    (tmp_path / "ISIC_1.jpg").write_bytes(b"")
    (tmp_path / "ISIC2018_Task3_Training_GroundTruth.csv").write_text("image,MEL,NV\nISIC_1,1,0\n")
    with pytest.raises(SourceError, match="no column BCC, AKIEC, BKL, DF, VASC"):
        ham10000(tmp_path)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data/ham10000")
def test_the_real_archive_is_listed_whole() -> None:
    images = ham10000(REAL)
    assert len(images) == 8514
    assert len({image.lesion_id for image in images}) == 6361
    assert {image.label for image in images} == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
    assert images[0].content()[:2] == b"\xff\xd8"
    assert all(image.mask and image.split is None for image in images)
