from pathlib import Path
from zipfile import ZipFile

import pytest

from dermtune.errors import SourceError
from dermtune.sources.pad_ufes_20 import pad_ufes_20

HEADER = "patient_id,lesion_id,smoke,age,gender,fitspatrick,region,diameter_1,diagnostic,img_id,biopsed\n"
ROWS = (
    "PAT_1,10,,8,,,ARM,,NEV,PAT_1_10_500.png,False\n"
    "PAT_2,10,False,55,FEMALE,3.0,NECK,6.0,BCC,PAT_2_10_501.png,True\n"
    "PAT_2,,False,55,MALE,0.0,,6.0,ACK,PAT_2_11_502.png,\n"
)
NAMES = ("PAT_1_10_500.png", "PAT_2_10_501.png")


def lay_out(root: Path) -> Path:
    (root / "metadata.csv").write_text(HEADER + ROWS)
    return root


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_official_layout_is_read(tmp_path: Path, is_packed: bool) -> None:  # noqa: FBT001
    lay_out(tmp_path)
    for part, name in enumerate(NAMES, start=1):
        if is_packed:
            (tmp_path / "images").mkdir(exist_ok=True)
            with ZipFile(tmp_path / "images" / f"imgs_part_{part}.zip", "w") as packed:
                packed.writestr(f"imgs_part_{part}/{name}", name)
        else:
            (tmp_path / f"imgs_part_{part}").mkdir()
            (tmp_path / f"imgs_part_{part}" / name).write_text(name)
    first, second, third = pad_ufes_20(tmp_path)
    assert (first.image_id, first.lesion_id, first.patient_id) == ("PAT_1_10_500", "PAT_1_10", "PAT_1")
    assert (first.label, first.dx_type, first.age) == ("NEV", "consensus", 8.0)
    assert (first.sex, first.site, first.skin_tone) == (None, "arm", None)
    assert (second.lesion_id, second.label, second.dx_type) == ("PAT_2_10", "BCC", "histo")
    assert (second.sex, second.site, second.skin_tone) == ("female", "neck", "III")
    assert second.license == "CC-BY-4.0"
    assert second.attribution
    assert [first.content(), second.content()] == [name.encode() for name in NAMES]
    assert (third.lesion_id, third.dx_type, third.skin_tone, third.site) == ("PAT_2_11_502", None, None, None)
    with pytest.raises(FileNotFoundError):
        third.content()


def test_an_image_that_the_table_lacks_is_listed_without_a_label(tmp_path: Path) -> None:
    (lay_out(tmp_path) / "PAT_9_9_9.png").write_bytes(b"")
    assert [(image.image_id, image.label) for image in pad_ufes_20(tmp_path)[3:]] == [("PAT_9_9_9", "")]


def test_a_missing_table_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no metadata\.csv here"):
        pad_ufes_20(tmp_path)
    (tmp_path / "metadata.csv").write_text("patient_id,img_id\n1,x.png\n")
    with pytest.raises(SourceError, match="no column lesion_id, diagnostic"):
        pad_ufes_20(tmp_path)
