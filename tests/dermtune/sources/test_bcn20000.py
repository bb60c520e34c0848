from pathlib import Path
from zipfile import ZipFile

import pytest

from dermtune.errors import SourceError
from dermtune.sources.bcn20000 import bcn20000

FIGSHARE = "bcn_filename,age_approx,anatom_site_general,diagnosis,lesion_id,capture_date,sex,split\n"
TRAIN = (
    "BCN_1.jpg,55.0,anterior torso,MEL,BCN_0003884,2012-05-16,male,train\n"
    "BCN_2.jpg,,,NV,BCN_0000019,2015-07-09,,train\n"
)
TEST = "BCN_3.jpg,40.0,back,{},BCN_0000020,2015-07-09,female,test\n"
ARCHIVE = (
    "isic_id,attribution,copyright_license,age_approx,anatom_site_general,diagnosis_1,diagnosis_2,diagnosis_3,"
    "diagnosis_4,diagnosis_5,diagnosis_confirm_type,image_type,lesion_id,sex\n"
    'ISIC_1,"Hospital Clínic de Barcelona",CC-BY-NC,50,head/neck,Malignant,'
    'Malignant melanocytic proliferations (Melanoma),"Melanoma, NOS",,,histopathology,dermoscopic,IL_1,male\n'
    "ISIC_2,,,,,Benign,,,,,single contributor clinical assessment,dermoscopic,IL_1,\n"
    "ISIC_3,,,,,,,,,,,dermoscopic,,\n"
)


def test_figshares_layout_is_read_packed(tmp_path: Path) -> None:
    (tmp_path / "bcn_20k_train.csv").write_text(FIGSHARE + TRAIN)
    with ZipFile(tmp_path / "BCN_20k_train.zip", "w") as archive:
        for name in ("BCN_1", "BCN_2", "BCN_9"):
            archive.writestr(f"bcn_20k_train/{name}.jpg", name.encode())
    first, second, unlisted = bcn20000(tmp_path)
    assert (first.image_id, first.lesion_id, first.label, first.split) == (
        "BCN_1",
        "BCN_0003884",
        "MEL",
        None,
    )
    assert (first.age, first.sex, first.site) == (55.0, "male", "anterior torso")
    assert first.content() == b"BCN_1"
    assert (second.age, second.sex, second.site) == (None, None, None)
    assert (unlisted.image_id, unlisted.label) == ("BCN_9", "")
    assert all("10.1038/s41597-024-03387-w" in (one.attribution or "") for one in (first, unlisted))


@pytest.mark.parametrize(("diagnosis", "splits"), [("BCC", ["train", "train", "test"]), ("", [None] * 3)])
def test_the_split_counts_only_with_test_images_whose_diagnosis_is_public(
    tmp_path: Path, diagnosis: str, splits: list[str | None]
) -> None:
    (tmp_path / "bcn_20k_train.csv").write_text(FIGSHARE + TRAIN)
    (tmp_path / "bcn_20k_test.csv").write_text(FIGSHARE + TEST.format(diagnosis))
    assert [one.split for one in bcn20000(tmp_path)] == [None] * 3
    (tmp_path / "bcn_20k_test").mkdir()
    (tmp_path / "bcn_20k_test" / "BCN_3.jpg").write_bytes(b"3")
    images = bcn20000(tmp_path)
    assert [one.split for one in images] == splits
    assert (images[2].label, images[2].content()) == (diagnosis, b"3")


def test_the_archives_layout_is_read(tmp_path: Path) -> None:
    (tmp_path / "bcn20000_metadata_2025-10-21.csv").write_text(ARCHIVE, encoding="utf-8")
    (tmp_path / "ISIC-images").mkdir()
    (tmp_path / "ISIC-images" / "ISIC_1.jpg").write_bytes(b"1")
    first, second, third = bcn20000(tmp_path)
    assert (first.lesion_id, first.label, first.dx_type) == ("IL_1", "Melanoma, NOS", "histo")
    assert (first.license, first.attribution) == ("CC-BY-NC", "Hospital Clínic de Barcelona")
    assert first.content() == b"1"
    assert (second.label, second.license) == ("benign, not further said", None)
    assert second.dx_type == "single contributor clinical assessment"
    assert (third.label, third.lesion_id, third.dx_type) == ("", "ISIC_3", None)


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no bcn20000_metadata\*\.csv or metadata\.csv"):
        bcn20000(tmp_path)
    (tmp_path / "metadata.csv").write_text("name,diagnosis\na,b\n")
    message = r"metadata\.csv: no column bcn_filename or isic_id; its columns are name, diagnosis"
    with pytest.raises(SourceError, match=message):
        bcn20000(tmp_path)
    (tmp_path / "metadata.csv").write_text("isic_id,diagnosis\n")
    assert bcn20000(tmp_path) == []
