import hashlib
import io
import pickle
from pathlib import Path
from zipfile import ZipFile

import pytest
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid

from dermtune.errors import SourceError
from dermtune.sources.dicom_folder import dicom_folder


def header(uid: str | None = None) -> Dataset:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid or generate_uid()
    made.PatientName, made.PatientID, made.PatientAge, made.PatientSex = "Doe^Jane", "12345", "045Y", "F"
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "77568009", "SCT", "Back"
    made.AnatomicRegionSequence = [region]
    made.AdmittingDiagnosesDescription = "melanoma"
    return made


def file_of(made: Dataset) -> bytes:
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def id_of(of: str | bytes) -> str:
    return "dcm-" + hashlib.sha256(of if isinstance(of, bytes) else of.encode()).hexdigest()[:16]


def test_what_the_header_says_is_listed_but_no_label_and_no_name(tmp_path: Path) -> None:
    data = file_of(header("1.2.3"))
    (tmp_path / "Doe_Jane.dcm").write_bytes(data)
    (image,) = dicom_folder(tmp_path)
    assert image.image_id == image.lesion_id == id_of("1.2.3")
    assert (image.path, image.label, image.patient_id) == (f"{image.image_id}.dcm", "", "12345")
    assert (image.age, image.sex, image.site) == (45.0, "female", "Back")
    assert pickle.loads(pickle.dumps(image.content))() == data  # noqa: S301
    assert "Doe" not in f"{image.image_id} {image.lesion_id} {image.path} {image.patient_id}"


@pytest.mark.parametrize(
    ("said", "years"),
    [("018M", 1.5), ("012W", 0.23), ("003D", 0.01), ("0Y", None), ("", None), ("old", None)],
)
def test_ages_become_years(tmp_path: Path, said: str, years: float | None) -> None:
    made = header()
    made["PatientAge"]._value = said
    (tmp_path / "x.dcm").write_bytes(file_of(made))
    assert dicom_folder(tmp_path)[0].age == years


def test_a_header_that_says_little_is_listed(tmp_path: Path) -> None:
    made = header()
    for tag in ("PatientID", "PatientAge", "PatientSex", "AnatomicRegionSequence"):
        delattr(made, tag)
    (tmp_path / "x.dcm").write_bytes(file_of(made))
    (image,) = dicom_folder(tmp_path)
    assert image.image_id == id_of(made.SOPInstanceUID)
    assert {image.patient_id, image.age, image.sex, image.site} == {None}


def test_files_are_known_by_suffix_or_mark_also_in_zips(tmp_path: Path) -> None:
    for name in ("a/one.DCM", "two.dicom", "IM0003", "1.2.840.4", "DICOMDIR", "five.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(file_of(header(f"1.2.{len(name)}")))
    (tmp_path / "LICENSE").write_text("no DICOM" * 100)
    with ZipFile(tmp_path / "more.zip", "w") as packed:
        packed.writestr("IM0006", file_of(header("1.2.999")))
    found = {image.image_id for image in dicom_folder(tmp_path)}
    named = ("a/one.DCM", "two.dicom", "IM0003", "1.2.840.4")
    assert found == {id_of(f"1.2.{len(name)}") for name in named} | {id_of("1.2.999")}


@pytest.mark.parametrize(
    "columns", ["SOPInstanceUID,label", "file,Diagnosis", "FileName,label", "path,label"]
)
def test_labels_come_from_the_table(tmp_path: Path, columns: str) -> None:
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.dcm").write_bytes(file_of(header(f"1.2.{ord(name)}")))
    by_uid = columns.startswith("SOP")
    called = [f"1.2.{ord(name)}" if by_uid else f"images/{name}.dcm" for name in "cax"]
    labels = ("nevus", "melanoma", "unknown")
    rows = "".join(f"{one},{label},L{label}\n" for one, label in zip(called, labels, strict=True))
    (tmp_path / "labels.csv").write_text(f"{columns},lesion_id\n{rows}")
    images = dicom_folder(tmp_path)
    assert [(image.image_id, image.label, image.lesion_id) for image in images] == [
        (id_of("1.2.99"), "nevus", "Lnevus"),
        (id_of("1.2.97"), "melanoma", "Lmelanoma"),
        (id_of(called[2]), "", "Lunknown"),
        (id_of("1.2.98"), "", id_of("1.2.98")),
    ]
    assert images[0].content() == (tmp_path / "images" / "c.dcm").read_bytes()
    with pytest.raises(FileNotFoundError):
        images[2].content()


def test_damaged_and_foreign_files_are_listed_by_their_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = file_of(header())
    cut = whole[:300] + b"Doe^Jane" * 3 + whole[320:400]
    files = {"Doe1.dcm": b"", "Doe2.dcm": b"Doe no DICOM", "Doe3.dcm": cut, "Doe4": cut}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    images = dicom_folder(tmp_path)
    assert len(images) == 4
    assert {image.label for image in images} == {""}
    assert id_of(b"") in {image.image_id for image in images}
    assert "Doe" not in caplog.text + "".join(capfd.readouterr())


def test_a_file_deflated_as_a_whole_is_not_unpacked(tmp_path: Path) -> None:
    made = header()
    made.ImageComments = "x" * 10_000
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    (tmp_path / "x.dcm").write_bytes(file_of(made))
    (image,) = dicom_folder(tmp_path)
    assert (image.image_id, image.patient_id) == (id_of(file_of(made)), None)


def test_a_link_that_leads_out_is_listed_unread(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.dcm").write_bytes(file_of(header("1.2.3")))
    (tmp_path / "root" / "x.dcm").symlink_to(tmp_path / "secret.dcm")
    (image,) = dicom_folder(tmp_path / "root")
    assert image.image_id == id_of(b"x.dcm")
    with pytest.raises(PermissionError):
        image.content()


def test_a_table_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,dx\nx.dcm,mel\n")
    with pytest.raises(SourceError, match=r"needs a column label or diagnosis.*its columns are file, dx"):
        dicom_folder(tmp_path)
    (tmp_path / "labels.csv").write_text("name,label\nx.dcm,mel\n")
    with pytest.raises(SourceError, match="and one SOPInstanceUID or file"):
        dicom_folder(tmp_path)
    (tmp_path / "more.tsv").write_text("file\tlabel\n")
    with pytest.raises(SourceError, match=r"2 tables \(labels\.csv, more\.tsv\)"):
        dicom_folder(tmp_path)
