import pickle
import time
from pathlib import Path
from zipfile import ZipFile

import pytest

from dermtune.errors import SourceError
from dermtune.sources.isic2019 import isic2019

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK")


def truth(labels: dict[str, str]) -> str:
    rows = [
        f"{image},{','.join(f'{one == label:.1f}' for one in CLASSES)}" for image, label in labels.items()
    ]
    return "\n".join([f"image,{','.join(CLASSES)}", *rows]) + "\n"


def lay_out(root: Path) -> Path:
    (root / "ISIC_2019_Training_GroundTruth.csv").write_text(
        truth({"ISIC_1": "NV", "ISIC_2_downsampled": "AK", "ISIC_3": "SCC"})
    )
    (root / "ISIC_2019_Training_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\n"
        "ISIC_1,55.0,anterior torso,,female\nISIC_2_downsampled,,,MSK4_0011,\n"
        "ISIC_3,85.0,head/neck,BCN_0003884,male\n"
    )
    folder = root / "ISIC_2019_Training_Input"
    folder.mkdir()
    for name in ("ISIC_1", "ISIC_2_downsampled", "ISIC_3_downsampled", "ISIC_9"):
        (folder / f"{name}.jpg").write_bytes(name.encode())
    return root


def test_the_training_part_is_listed_with_its_metadata(tmp_path: Path) -> None:
    first, second, third, unlisted = isic2019(lay_out(tmp_path))
    assert (first.image_id, first.lesion_id, first.label) == ("ISIC_1", "ISIC_1", "NV")
    assert (first.age, first.sex, first.site) == (55.0, "female", "anterior torso")
    assert (second.lesion_id, second.label, second.age, second.sex, second.site) == (
        *("MSK4_0011", "AK"),
        *(None, None, None),
    )
    assert second.content() == b"ISIC_2_downsampled"
    assert (third.lesion_id, third.label, third.split) == ("BCN_0003884", "SCC", None)
    assert (unlisted.image_id, unlisted.label) == ("ISIC_9", "")
    assert {one.license for one in (first, second, third, unlisted)} == {"CC-BY-NC-4.0"}


def test_a_smaller_copy_is_found_by_either_name(tmp_path: Path) -> None:
    images = isic2019(lay_out(tmp_path))
    assert images[2].content() == b"ISIC_3_downsampled"
    assert len(images) == 4
    (tmp_path / "ISIC_2019_Training_Input" / "ISIC_2_downsampled.jpg").rename(tmp_path / "ISIC_2.jpg")
    assert isic2019(tmp_path)[1].content() == b"ISIC_2_downsampled"


def test_the_test_part_makes_the_official_split_and_unk_is_a_label(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "ISIC_2019_Test_GroundTruth.csv").write_text(truth({"ISIC_5": "MEL", "ISIC_6": "UNK"}))
    (tmp_path / "ISIC_2019_Test_Metadata.csv").write_text(
        "image,age_approx,anatom_site_general,sex\nISIC_5,40,back,male\n"
    )
    assert {one.split for one in isic2019(tmp_path)} == {None}
    with ZipFile(tmp_path / "ISIC_2019_Test_Input.zip", "w") as archive:
        archive.writestr("ISIC_2019_Test_Input/ISIC_5.jpg", b"5")
        archive.writestr("ISIC_2019_Test_Input/ISIC_6.jpg", b"6")
        archive.writestr("ISIC_2019_Test_Input/LICENSE.txt", b"no image")
    images = isic2019(tmp_path)
    assert [(one.image_id, one.label, one.split) for one in images] == [
        ("ISIC_1", "NV", "train"),
        ("ISIC_2_downsampled", "AK", "train"),
        ("ISIC_3", "SCC", "train"),
        ("ISIC_5", "MEL", "test"),
        ("ISIC_6", "UNK", "test"),
        ("ISIC_9", "", None),
    ]
    assert (images[3].age, images[3].lesion_id) == (40.0, "ISIC_5")
    assert pickle.loads(pickle.dumps(images[3].content))() == b"5"  # noqa: S301 - as worker processes get it


def test_a_table_without_the_metadata_is_enough(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "ISIC_2019_Training_Metadata.csv").unlink()
    assert [one.lesion_id for one in isic2019(tmp_path)][:3] == ["ISIC_1", "ISIC_2_downsampled", "ISIC_3"]


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no ISIC_2019_Training_GroundTruth\.csv"):
        isic2019(tmp_path)
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").write_text("image,MEL\nISIC_1,1.0\n")
    with pytest.raises(SourceError, match="no column NV, BCC, AK, BKL, DF, VASC, SCC"):
        isic2019(tmp_path)


def test_tens_of_thousands_of_images_are_listed_in_seconds(tmp_path: Path) -> None:
    names = [f"ISIC_{number:07}" for number in range(25_000)]
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").write_text(truth(dict.fromkeys(names, "NV")))
    with ZipFile(tmp_path / "ISIC_2019_Training_Input.zip", "w") as archive:
        for name in names:
            archive.writestr(f"ISIC_2019_Training_Input/{name}.jpg", b"")
    start = time.monotonic()
    assert len(isic2019(tmp_path)) == 25_000
    assert time.monotonic() - start < 30
