import logging
import pickle
from pathlib import Path
from zipfile import ZipFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermtune.errors import SourceError
from dermtune.labels import class_of
from dermtune.sources.isic_archive import _CHECKED, _checked, isic_archive

HEADER = (
    "isic_id,attribution,copyright_license,age_approx,anatom_site_general,anatom_site_1,anatom_site_2,"
    "diagnosis_1,diagnosis_2,diagnosis_3,diagnosis_confirm_type,fitzpatrick_skin_type,image_type,lesion_id,"
    "patient_id,sex,mel_ulcer"
)
MEL = "Malignant,Malignant melanocytic proliferations (Melanoma),Melanoma Invasive"
NEVUS = "Benign,Benign melanocytic proliferations,Nevus"
FULL = (
    f"ISIC_0000001,A hospital,CC-BY,85,posterior torso,Trunk,Posterior trunk,{MEL},histopathology,II,"
    "dermoscopic,IL_1,IP_1,female,True"
)


def row(isic_id: str, diagnosis: str, rest: str = "histopathology,,dermoscopic,,,,", age: str = "50") -> str:
    return f"{isic_id},A hospital,CC-0,{age},,,,{diagnosis},{rest}"


def lay_out(root: Path, *rows: str, header: str = HEADER) -> Path:
    (root / "images").mkdir(exist_ok=True)
    (root / "metadata.csv").write_text("\r\n".join([header, *rows]) + "\r\n", encoding="utf-8")
    for line in rows:
        name = Path(line.partition(",")[0]).name or "none"
        (root / "images" / f"{name}.jpg").write_bytes(name.encode())
    return root


def test_a_row_becomes_an_image_with_all_that_it_says(tmp_path: Path) -> None:
    (image,) = isic_archive(lay_out(tmp_path, FULL))
    assert (image.image_id, image.lesion_id, image.patient_id) == ("ISIC_0000001", "IL_1", "IP_1")
    assert (image.label, image.dx_type) == ("Melanoma Invasive", "histo")
    assert class_of(image.label) == "mel"
    assert (image.age, image.sex, image.site, image.skin_tone) == (85, "female", "posterior torso", "II")
    assert (image.license, image.attribution) == ("CC-BY", "A hospital")
    assert image.path == "images/ISIC_0000001.jpg"
    assert pickle.loads(pickle.dumps(image.content))() == b"ISIC_0000001"  # noqa: S301


def test_what_isic_cli_left_in_one_folder_or_a_packed_one_is_listed_too(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "ISIC-images.zip", "w") as packed:
        packed.writestr("ISIC-images/metadata.csv", f"{HEADER}\n{FULL}\n")
        packed.writestr("ISIC-images/ISIC_0000001.jpg", b"packed")
    (image,) = isic_archive(tmp_path)
    assert (image.label, image.content()) == ("Melanoma Invasive", b"packed")


@pytest.mark.parametrize(
    ("levels", "label"),
    [
        (("Benign", "", ""), "benign, not further said"),
        (("Indeterminate", "", ""), "Indeterminate"),
        (("Benign", "Benign melanocytic proliferations", ""), "Benign melanocytic proliferations"),
        (("Benign", "Benign melanocytic proliferations", "Nevus"), "Nevus"),
        (("", "", ""), ""),
        (("unknown", "", ""), ""),
    ],
)
def test_the_label_is_the_most_specific_diagnosis(
    tmp_path: Path, levels: tuple[str, ...], label: str
) -> None:
    (image,) = isic_archive(lay_out(tmp_path, row("ISIC_1", ",".join(levels))))
    assert image.label == label


@pytest.mark.parametrize(
    ("words", "dx_type"),
    [
        ("histopathology", "histo"),
        ("serial imaging showing no change", "follow_up"),
        ("single image expert consensus", "consensus"),
        ("confocal microscopy with consensus dermoscopy", "confocal"),
        ("single contributor clinical assessment", "single contributor clinical assessment"),
        ("a guess", None),
        ("", None),
    ],
)
def test_how_a_diagnosis_was_confirmed_is_told_in_our_words(
    tmp_path: Path, words: str, dx_type: str | None
) -> None:
    (image,) = isic_archive(lay_out(tmp_path, row("ISIC_1", NEVUS, f"{words},,dermoscopic,,,,")))
    assert image.dx_type == dx_type


@pytest.mark.parametrize("kind", ["clinical: close-up", "TBP tile: close-up", "RCM: mosaic", "a new kind"])
def test_an_image_that_is_not_dermoscopic_says_so_in_its_label_which_means_no_class(
    tmp_path: Path, kind: str
) -> None:
    (image,) = isic_archive(lay_out(tmp_path, row("ISIC_1", NEVUS, f"histopathology,,{kind},,,,")))
    assert image.label == f"Nevus ({kind})"
    assert class_of(image.label) is None


def test_an_image_of_no_kind_counts_as_dermoscopic(tmp_path: Path) -> None:
    (image,) = isic_archive(lay_out(tmp_path, row("ISIC_1", NEVUS, "histopathology,,,,,,")))
    assert image.label == "Nevus"


@pytest.mark.parametrize("diagnosis", ["Benign,,Melanoma Invasive", "Benign,Nevi,Mole", "Good,,"])
def test_a_diagnosis_that_is_not_in_the_tree_leaves_no_label_and_a_warning(
    tmp_path: Path, diagnosis: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        (image,) = isic_archive(lay_out(tmp_path, row("ISIC_1", diagnosis)))
    assert (image.label, image.dx_type, image.age) == ("", "histo", 50)
    assert "1 images have no label" in caplog.text
    assert "(ISIC_1)" in caplog.text


def test_another_field_that_is_refused_is_unknown_and_the_label_stays(tmp_path: Path) -> None:
    line = (
        f"ISIC_1,A,CC-0,fifty,the moon,Trunk,Ear,{NEVUS},histopathology,VII,dermoscopic,IL_1,IP_1,many,maybe"
    )
    (image,) = isic_archive(lay_out(tmp_path, line))
    assert (image.label, image.lesion_id, image.patient_id) == ("Nevus", "IL_1", "IP_1")
    assert (image.age, image.sex, image.site, image.skin_tone) == (None, None, None, None)


def test_an_age_of_over_eighty_five_is_eighty_five(tmp_path: Path) -> None:
    (image,) = isic_archive(lay_out(tmp_path, row("ISIC_1", NEVUS, age="85+")))
    assert image.age == 85


def test_where_the_older_column_is_empty_the_site_is_the_tree_s_first_level(tmp_path: Path) -> None:
    line = f"ISIC_1,A,CC-0,50,,Trunk,Posterior trunk,{NEVUS},histopathology,,dermoscopic,,,,"
    (image,) = isic_archive(lay_out(tmp_path, line))
    assert image.site == "Trunk"


def test_a_table_of_few_columns_is_enough(tmp_path: Path) -> None:
    (image,) = isic_archive(lay_out(tmp_path, "ISIC_1", header="isic_id"))
    assert (image.label, image.lesion_id, image.license, image.content()) == ("", "ISIC_1", None, b"ISIC_1")


def test_the_words_of_an_older_download_are_kept(tmp_path: Path) -> None:
    (image,) = isic_archive(lay_out(tmp_path, "ISIC_1,melanoma", header="isic_id,diagnosis"))
    assert image.label == "melanoma"


def test_images_without_a_row_and_rows_without_an_image_are_listed(tmp_path: Path) -> None:
    root = lay_out(tmp_path, row("ISIC_1", NEVUS), row("../ISIC_2", NEVUS))
    (root / "images" / "ISIC_3.png").write_bytes(b"more")
    (root / "images" / ".ISIC_partial-1").mkdir()
    (root / "images" / ".ISIC_partial-1" / "ISIC_4.jpg").write_bytes(b"half")
    images = {image.image_id: image for image in isic_archive(root)}
    assert list(images) == ["ISIC_1", "../ISIC_2", "ISIC_2", "ISIC_3"]
    assert (images["ISIC_3"].label, images["ISIC_3"].content()) == ("", b"more")
    with pytest.raises(FileNotFoundError):
        images["../ISIC_2"].content()


def test_a_row_without_or_with_another_s_id_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"metadata\.csv: row 2: ISIC_1 is there twice"):
        isic_archive(lay_out(tmp_path, row("ISIC_1", NEVUS), row("ISIC_1", MEL)))
    with pytest.raises(SourceError, match=r"metadata\.csv: row 1: no isic_id"):
        isic_archive(lay_out(tmp_path, row("", NEVUS)))


def test_a_folder_without_a_table_or_with_another_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no metadata"):
        isic_archive(tmp_path)
    with pytest.raises(SourceError, match="no column isic_id"):
        isic_archive(lay_out(tmp_path, "1", header="image_id"))


@given(st.dictionaries(st.sampled_from([*_CHECKED, "age_approx", "image_type"]), st.text()))
def test_no_words_make_a_traceback(words: dict[str, str]) -> None:
    assert set(_checked(words)) >= set(words)
