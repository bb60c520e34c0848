import time
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest

from dermtune.errors import SourceError
from dermtune.sources.listed import listed

WHOLE = (
    "image_id,lesion_id,patient_id,label,age,sex,site,dx_type,skin_tone,split,license,attribution\n"
    "one,L1,P1,melanoma,45,F,back,histo,3,Training,CC-BY-4.0,A clinic\n"
    "two,,,nevus,unknown,x,NaN,,,,,\n"
)


def lay_out(root: Path, table: str, *images: str, name: str = "labels.csv") -> Path:
    (root / name).write_text(table)
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).write_bytes(image.encode())
    return root


def test_columns_of_the_fields_names_are_read(tmp_path: Path) -> None:
    first, second, third = listed(lay_out(tmp_path, WHOLE, "a/one.jpg", "two.png", "three.png"), {})
    assert (first.image_id, first.lesion_id, first.patient_id, first.label) == ("one", "L1", "P1", "melanoma")
    assert (first.age, first.sex, first.site, first.dx_type) == (45.0, "female", "back", "histo")
    assert (first.skin_tone, first.split, first.license) == ("III", "train", "CC-BY-4.0")
    assert (first.attribution, first.path, first.content()) == ("A clinic", "a/one.jpg", b"a/one.jpg")
    assert (second.lesion_id, second.patient_id, second.label) == ("two", None, "nevus")
    assert {second.age, second.sex, second.site, second.dx_type, second.skin_tone, second.split} == {None}
    assert (third.image_id, third.label, third.content()) == ("three", "", b"three.png")


def test_other_columns_are_named_in_the_params(tmp_path: Path) -> None:
    table = "File;Diagnose;Patient;Kommentar\nbilder\\eins.jpg;Melanom;17;x\n"
    lay_out(tmp_path, table, "bilder/eins.jpg", "b/eins.jpg")
    (tmp_path / "bilder" / "eins.jpg").write_bytes(b"eins")
    first, second = listed(tmp_path, {"path": "File", "label": "Diagnose", "patient_id": "Patient"})
    assert (first.image_id, first.label, first.patient_id) == ("bilder-eins.jpg", "Melanom", "17")
    assert first.content() == b"eins"
    assert (second.image_id, second.label) == ("b-eins.jpg", "")


def test_images_and_masks_in_zips_are_found(tmp_path: Path) -> None:
    lay_out(tmp_path, "image_id,label,mask\none,nv,masks/one.png\ntwo,nv,masks/two.png\n", "masks/one.png")
    with ZipFile(tmp_path / "images.zip", "w") as packed:
        packed.writestr("images/one.jpg", "image")
        packed.writestr("images/two.jpg", "image")
    first, second = listed(tmp_path, {})
    assert (first.path, first.content()) == ("images.zip/images/one.jpg", b"image")
    assert first.mask is not None
    assert first.mask() == b"masks/one.png"
    assert second.mask is not None
    with pytest.raises(FileNotFoundError):
        second.mask()


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "{outside}/secret.jpg", "C:\\secret.jpg", "\\\\host\\x\\one.jpg"]
)
def test_a_path_that_leaves_the_folder_is_not_found(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    lay_out(root, f"path,label\n{path.format(outside=tmp_path)},nv\n", "one.jpg")
    first, second = listed(root, {})
    assert first.label == "nv"
    with pytest.raises(FileNotFoundError):
        first.content()
    assert (second.path, second.label) == ("one.jpg", "")


def test_a_row_without_an_image_and_a_name_of_several_files_are_listed(tmp_path: Path) -> None:
    lay_out(tmp_path, "path,label\n,nv\n1.jpg,mel\n", "a/1.jpg", "b/1.jpg")
    first, second, *others = listed(tmp_path, {})
    assert (first.image_id, first.path) == ("labels.csv-row-1", "labels.csv, row 1")
    with pytest.raises(FileNotFoundError):
        first.content()
    assert (second.image_id, second.path, second.label) == ("1.jpg", "1.jpg", "mel")
    with pytest.raises(OSError, match="several files are called so"):
        second.content()
    assert [(image.image_id, image.label) for image in others] == [("a-1.jpg", ""), ("b-1.jpg", "")]


def test_parquet_is_read_as_a_csv_would_be(tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "image_id": [17, 18],
            "lesion_id": [3.0, None],
            "label": pd.array(["mel", None], dtype="string"),
            "age": [61.5, float("nan")],
            "sex": pd.Categorical(["male", None]),
            "more": [[1, 2], None],
        }
    )
    rows.to_parquet(tmp_path / "labels.parquet")
    (tmp_path / "17.jpg").write_bytes(b"17")
    first, second = listed(tmp_path, {})
    assert (first.image_id, first.lesion_id, first.label, first.age) == ("17", "3", "mel", 61.5)
    assert (first.sex, first.content()) == ("male", b"17")
    assert (second.image_id, second.lesion_id, second.label, second.age) == ("18", "18", "", None)


@pytest.mark.parametrize("data", [b"", b"PAR1 junk PAR1"])
def test_damaged_parquet_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.parquet").write_bytes(data)
    with pytest.raises(SourceError, match=r"labels\.parquet: not a readable table"):
        listed(tmp_path, {})


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("image_id,label\n", {}, "no rows"),
        ("image_id,dx\n1,mel\n", {}, "no column label, but image_id, dx; say in ingest.columns"),
        ("id,label\n1,mel\n", {}, "no column image_id or path, but id, label"),
        ("id,label\n1,mel\n", {"name": "id"}, r"ingest\.columns: no field name; the fields are image_id"),
        ("id,label\n1,mel\n", {"content": "id"}, "no field content"),
        (
            "id,label\n1,mel\n",
            {"image_id": "ID"},
            r"ingest\.columns\.image_id: .* has no column 'ID', but id",
        ),
        (
            "image_id,label,split\n1,mel,train\n2,nv,dev\n",
            {},
            r"labels\.csv, row 2: split 'dev' is none of train",
        ),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, table: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        listed(lay_out(tmp_path, table), columns)


def test_of_several_tables_one_has_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"0 tables \(\.csv, "):
        listed(tmp_path, {})
    lay_out(tmp_path, "image_id,label\n1,mel\n")
    lay_out(tmp_path, "read me", name="README.txt")
    with pytest.raises(SourceError, match=r"2 tables \(README\.txt, labels\.csv\).*ingest\.columns\.table"):
        listed(tmp_path, {})
    assert listed(tmp_path, {"table": "labels.csv"})[0].label == "mel"
    with pytest.raises(SourceError, match=r"ingest\.columns\.table: no other\.csv"):
        listed(tmp_path, {"table": "other.csv"})


def test_many_rows_are_no_trouble(tmp_path: Path) -> None:
    names = [f"images/{place}.jpg" for place in range(10_000)]
    lay_out(tmp_path, "path,label\n" + "".join(f"{name},nv\n" for name in names))
    with ZipFile(tmp_path / "images.zip", "w") as packed:
        for name in names:
            packed.writestr(name, b"")
    began = time.monotonic()
    assert len(listed(tmp_path, {})) == 10_000
    assert time.monotonic() - began < 20
