from pathlib import Path
from zipfile import ZipFile

import pytest

from dermtune.errors import SourceError
from dermtune.sources.isic2020 import isic2020

HEADER = (
    "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
)
ROWS = (
    "ISIC_1,IP_1,male,45.0,head/neck,unknown,benign,0\n"
    "ISIC_2,IP_1,female,45.0,upper extremity,nevus,benign,0\n"
    "ISIC_3,IP_2,,,,melanoma,malignant,1\n"
    "ISIC_4,IP_3,male,90.0,torso,unknown,unknown,\n"
)
VERSION_2 = (
    "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis,"
    "benign_malignant,target\n"
    "ISIC_1,IP_1,IL_1,male,45.0,head/neck,unknown,benign,0\n"
    "ISIC_2,IP_1,IL_2,female,45.0,upper extremity,nevus,benign,0\n"
    "ISIC_3,IP_2,IL_3,,,,melanoma,malignant,1\n"
    "ISIC_4,IP_3,IL_4,male,90.0,torso,lentigo NOS,benign,0\n"
)


def images_in(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


def test_kaggles_table_is_read_and_benign_alone_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(HEADER + ROWS)
    images_in(tmp_path / "train", "ISIC_1.dcm", "ISIC_2.jpg", "ISIC_3.jpg", "ISIC_4.jpg", "ISIC_8.jpg")
    images = isic2020(tmp_path)
    assert [(one.image_id, one.label, one.patient_id, one.lesion_id) for one in images] == [
        ("ISIC_1", "benign, not further said", "IP_1", "ISIC_1"),
        ("ISIC_2", "nevus", "IP_1", "ISIC_2"),
        ("ISIC_3", "melanoma", "IP_2", "ISIC_3"),
        ("ISIC_4", "", "IP_3", "ISIC_4"),
        ("ISIC_8", "", None, "ISIC_8"),
    ]
    assert images[0].content() == b"ISIC_1.dcm"
    assert (images[0].age, images[0].sex, images[0].site) == (45.0, "male", "head/neck")
    assert (images[2].age, images[2].sex, images[2].site) == (None, None, None)
    assert {(one.license, one.split) for one in images} == {("CC-BY-NC-4.0", None)}


def test_the_second_version_goes_first_and_the_zip_stays_packed(tmp_path: Path) -> None:
    (tmp_path / "ISIC_2020_Training_GroundTruth.csv").write_text(HEADER + ROWS)
    (tmp_path / "ISIC_2020_Training_GroundTruth_v2.csv").write_text(VERSION_2)
    with ZipFile(tmp_path / "ISIC_2020_Training_JPEG.zip", "w") as archive:
        archive.writestr("train/ISIC_1.jpg", b"1")
    images = isic2020(tmp_path)
    assert [one.lesion_id for one in images] == ["IL_1", "IL_2", "IL_3", "IL_4"]
    assert images[0].content() == b"1"
    with pytest.raises(FileNotFoundError):
        images[1].content()


def test_of_a_jpeg_and_a_dicom_of_one_image_the_jpeg_is_taken_and_neither_twice(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(HEADER + ROWS)
    images_in(tmp_path / "jpeg" / "train", "ISIC_1.jpg", "ISIC_2.jpg")
    images_in(tmp_path / "train", "ISIC_1.dcm", "ISIC_2.dcm")
    images = isic2020(tmp_path)
    assert images[0].content() == b"ISIC_1.jpg"
    assert len(images) == 4


def test_duplicates_share_a_lesion_transitively_with_all_images_of_it(tmp_path: Path) -> None:
    extra = "ISIC_5,IP_3,IL_2,male,90.0,torso,nevus,benign,0\n"
    (tmp_path / "ISIC_2020_Training_GroundTruth_v2.csv").write_text(VERSION_2 + extra)
    (tmp_path / "ISIC_2020_Training_Duplicates.csv").write_text(
        "image_name_1,image_name_2\nISIC_1,ISIC_2\nISIC_2,ISIC_4\nISIC_4,ISIC_1\nISIC_77,ISIC_78\n"
    )
    assert [one.lesion_id for one in isic2020(tmp_path)] == ["IL_1", "IL_1", "IL_3", "IL_1", "IL_1"]


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no ISIC_2020_Training_GroundTruth_v2\.csv or .* or train\.csv"):
        isic2020(tmp_path)
    (tmp_path / "train.csv").write_text("image_name,target\nISIC_1,0\n")
    with pytest.raises(SourceError, match="no column diagnosis, benign_malignant"):
        isic2020(tmp_path)
    (tmp_path / "train.csv").write_text(HEADER + ROWS)
    (tmp_path / "ISIC_2020_Training_Duplicates.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match="no column image_name_1, image_name_2"):
        isic2020(tmp_path)
