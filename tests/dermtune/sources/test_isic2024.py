import pickle
import time
from pathlib import Path
from zipfile import ZipFile

import fsspec
import h5py
import numpy as np
import pytest

from dermtune.errors import SourceError
from dermtune.places import Place
from dermtune.sources.isic2024 import isic2024

HEADER = (
    "isic_id,target,patient_id,age_approx,sex,anatom_site_general,clin_size_long_diam_mm,image_type,tbp_lv_A,"
    "attribution,copyright_license,lesion_id,iddx_full,iddx_1,iddx_2,iddx_3,iddx_4,iddx_5,mel_thick_mm\n"
)
SHARED = 'posterior torso,3.0,TBP tile: close-up,20.2,"Clínic, Barcelona",CC-BY'
ROWS = (
    f"ISIC_1,0,IP_1,60.0,male,{SHARED},,Benign,Benign,,,,,\n"
    f"ISIC_2,1,IP_1,60.0,male,{SHARED},IL_2,x,Malignant,Malignant melanocytic proliferations (Melanoma),"
    "Melanoma Invasive,,,0.4\n"
    f"ISIC_3,0,IP_2,,female,{SHARED},IL_3,x,Benign,Benign melanocytic proliferations,Nevus,"
    '"Nevus, Combined",,\n'
    f"ISIC_4,0,IP_2,,female,{SHARED},,Indeterminate,Indeterminate,,,,,\n"
    f"ISIC_5,1,IP_2,,female,{SHARED},,,,,,,,\n"
    f"ISIC_6,,IP_2,,female,{SHARED},,,,,,,,\n"
)
LABELS = [
    "benign, not further said",
    "Melanoma Invasive",
    "Nevus, Combined",
    "Indeterminate",
    "malignant, not further said",
    "",
]


def pack(path: Path, images: dict[str, bytes]) -> None:
    with h5py.File(path, "w") as packed:
        for name, data in images.items():
            packed[name] = np.void(data)


def test_kaggles_table_and_hdf5_are_read(tmp_path: Path) -> None:
    (tmp_path / "train-metadata.csv").write_text(HEADER + ROWS, encoding="utf-8")
    pack(tmp_path / "train-image.hdf5", {f"ISIC_{one}": b"\xff\xd8%d\xff\xd9" % one for one in (1, 2, 3, 9)})
    images = isic2024(tmp_path)
    assert [one.label for one in images] == [*LABELS, ""]
    second = images[1]
    assert (second.image_id, second.lesion_id, second.patient_id) == ("ISIC_2", "IL_2", "IP_1")
    assert (second.age, second.sex, second.site) == (60.0, "male", "posterior torso")
    assert (second.license, second.attribution) == ("CC-BY", "Clínic, Barcelona")
    assert second.path == "train-image.hdf5/ISIC_2"
    assert pickle.loads(pickle.dumps(second.content))() == b"\xff\xd82\xff\xd9"  # noqa: S301 - as worker processes get it
    with pytest.raises(FileNotFoundError):
        images[3].content()
    assert (images[6].image_id, images[6].content()) == ("ISIC_9", b"\xff\xd89\xff\xd9")


def test_hdf5_is_read_in_a_bucket_and_a_store_that_fails_is_no_damage(tmp_path: Path, s3: str) -> None:
    (tmp_path / "train-metadata.csv").write_text(HEADER + ROWS, encoding="utf-8")
    pack(tmp_path / "train-image.hdf5", {f"ISIC_{one}": bytes(1 << 21) + b"%d" % one for one in range(1, 7)})
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.put(f"{tmp_path}/", f"{s3}/in/", recursive=True)
    images = isic2024(Place(f"{s3}/in"))
    assert [one.label for one in images] == LABELS
    content = pickle.loads(pickle.dumps(images[1].content))  # noqa: S301 - as worker processes get it
    assert content() == bytes(1 << 21) + b"2"
    store.copy(f"{s3}/in/train-metadata.csv", f"{s3}/in/train-image.hdf5")
    with pytest.raises(SourceError, match="is gone or was changed"):
        images[5].content()


@pytest.mark.parametrize("value", [np.bytes_(b"jpeg"), b"jpeg", np.frombuffer(b"jpeg", np.uint8), "jpeg"])
def test_every_way_to_hold_bytes_in_hdf5_is_read(tmp_path: Path, value: object) -> None:
    (tmp_path / "train-metadata.csv").write_text(HEADER + ROWS)
    with h5py.File(tmp_path / "train-image.hdf5", "w") as packed:
        packed["ISIC_1"] = value
    assert isic2024(tmp_path)[0].content() == b"jpeg"


def test_links_in_hdf5_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "train-metadata.csv").write_text(HEADER + ROWS)
    pack(tmp_path / "secret.hdf5", {"ISIC_1": b"secret"})
    (tmp_path / "secret.bin").write_bytes(b"secret")
    with h5py.File(root / "train-image.hdf5", "w") as packed:
        packed["ISIC_1"] = h5py.ExternalLink("../secret.hdf5", "/ISIC_1")
        packed.create_group("ISIC_2")
        packed.create_dataset("ISIC_3", (6,), "u1", external=[(str(tmp_path / "secret.bin"), 0, 6)])
        packed["ISIC_4"] = h5py.SoftLink("/ISIC_3")
    for image in isic2024(root)[:4]:
        with pytest.raises(PermissionError):
            image.content()


def test_an_empty_or_too_large_member_fails_only_when_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train-metadata.csv").write_text(HEADER + ROWS)
    with h5py.File(tmp_path / "train-image.hdf5", "w") as packed:
        packed["ISIC_1"] = h5py.Empty("S1")
        packed["ISIC_2"] = np.void(b"12345")
    monkeypatch.setattr("dermtune.sources.isic2024.MAX_BYTES", 4)
    for image in isic2024(tmp_path)[:2]:
        with pytest.raises(OSError, match="empty or over 0 MiB"):
            image.content()


def test_an_hdf5_that_is_none_is_refused_and_a_link_out_of_the_folder_too(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "train-metadata.csv").write_text(HEADER + ROWS)
    (root / "train-image.hdf5").write_bytes(b"none")
    with pytest.raises(SourceError, match="not an HDF5 file that can be read"):
        isic2024(root)
    (root / "train-image.hdf5").rename(tmp_path / "outside.hdf5")
    (root / "train-image.hdf5").symlink_to(tmp_path / "outside.hdf5")
    with pytest.raises(SourceError, match="a link leads out of the folder"):
        isic2024(root)


def test_kaggles_zip_stays_packed_where_it_has_the_images_as_files(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "isic-2024-challenge.zip", "w") as archive:
        archive.writestr("train-metadata.csv", HEADER + ROWS)
        archive.writestr("train-image.hdf5", b"cannot be read in here")
        archive.writestr("train-image/image/ISIC_1.jpg", b"1")
        archive.writestr("train-image/image/ISIC_9.jpg", b"9")
    images = isic2024(tmp_path)
    assert images[0].content() == b"1"
    assert [(one.image_id, one.label) for one in images[6:]] == [("ISIC_9", "")]


def test_files_beside_the_hdf5_are_not_listed_twice(tmp_path: Path) -> None:
    (tmp_path / "train-metadata.csv").write_text(HEADER + ROWS)
    pack(tmp_path / "train-image.hdf5", {"ISIC_1": b"1"})
    folder = tmp_path / "train-image" / "image"
    folder.mkdir(parents=True)
    for name in ("ISIC_1", "ISIC_2"):
        (folder / f"{name}.jpg").write_bytes(name.encode())
    images = isic2024(tmp_path)
    assert [one.content() for one in images[:2]] == [b"1", b"ISIC_2"]
    assert len(images) == 6


def test_the_challenges_three_tables_are_joined(tmp_path: Path) -> None:
    (tmp_path / "ISIC_2024_Training_GroundTruth.csv").write_text(
        "isic_id,malignant\nISIC_1,0.0\nISIC_2,1.0\n", encoding="utf-8-sig"
    )
    (tmp_path / "ISIC_2024_Training_Supplement.csv").write_text(
        "isic_id,iddx_full,iddx_1,iddx_2,iddx_3,iddx_4,iddx_5\nISIC_1,Benign,Benign,,,,\n"
    )
    with ZipFile(tmp_path / "ISIC_2024_Training_Input.zip", "w") as archive:
        archive.writestr("ISIC_2024_Training_Input/ISIC_1.jpg", b"1")
        archive.writestr(
            "ISIC_2024_Training_Input/metadata.csv",
            "isic_id,attribution,copyright_license,age_approx,patient_id\nISIC_2,MSKCC,CC-0,50,IP_9\nISIC_7,,,,\n",
        )
    first, second = isic2024(tmp_path)
    assert (first.label, first.content()) == ("benign, not further said", b"1")
    assert (second.label, second.license, second.age, second.patient_id) == (
        *("malignant, not further said", "CC-0"),
        *(50.0, "IP_9"),
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("isic_id,sex\nISIC_1,male\n", "no column target"),
        ("target\n1\n", "no column isic_id"),
        ("a,b\n1,2\n", "no column isic_id, target"),
        ("", "empty"),
        (f"isic_id,target\nISIC_1,{'1' * (2 << 20)}\n", "not a readable table: field larger than"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(SourceError, match=r"no train-metadata\.csv"):
        isic2024(tmp_path)
    (tmp_path / "train-metadata.csv").write_text(table)
    with pytest.raises(SourceError, match=rf"train-metadata\.csv: {message}"):
        isic2024(tmp_path)


def test_forty_thousand_rows_are_listed_in_seconds(tmp_path: Path) -> None:
    wide = ",".join(["1.23456789"] * 30)
    header = "isic_id,target," + ",".join(f"tbp_lv_{one}" for one in range(30)) + ",iddx_1"
    rows = [f"ISIC_{one:07},0,{wide},Benign" for one in range(40_000)]
    (tmp_path / "train-metadata.csv").write_text("\n".join([header, *rows]))
    start = time.monotonic()
    assert len(isic2024(tmp_path)) == 40_000
    assert time.monotonic() - start < 30
