"""An answer lies in its patient's study, names its image and its bundle, and can be read as any capture."""

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dermtune_bundle import Bundle, read_image
from dermtune_bundle.decode import decode
from dermtune_bundle.dicom import STORAGE
from dermtune_bundle.dicom_answer import dicom_answer
from dermtune_bundle.errors import ImageError
from dermtune_bundle.predict import predict_files


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A red one, of a patient."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = next(iter(STORAGE))
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = generate_uid(), generate_uid()
    made.PatientName, made.PatientID, made.PatientSex = "Doe^Jane", "12345", "F"
    made.BurnedInAnnotation, made.LossyImageCompression = "YES", "01"
    made.PatientBirthDate, made.StudyDate, made.StudyTime = "19700102", "20260102", "101112"
    made.AccessionNumber, made.StudyID, made.ReferringPhysicianName = "A1", "S1", "Roe^Richard"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.Rows, made.Columns = 90, 120
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PixelData = np.full((90, 120, 3), (255, 0, 0), np.uint8).tobytes()
    path = tmp_path / "red.dcm"
    made.save_as(path, enforce_file_format=True)
    return path


def test_it_is_of_the_same_study_and_names_image_and_bundle(photograph: Path, tiny_bundle: Path) -> None:
    bundle, image = Bundle.open(tiny_bundle), read_image(photograph)
    given = dcmread(photograph)
    content = dicom_answer(photograph, image, bundle, bundle.predict(image))
    answer = dcmread(io.BytesIO(content))
    assert STORAGE[answer.SOPClassUID] == "Secondary Capture Image"
    for name in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
        assert answer[name].value == given[name].value
    assert answer.SeriesInstanceUID != given.SeriesInstanceUID
    assert answer.SourceImageSequence[0].ReferencedSOPInstanceUID == given.SOPInstanceUID
    assert answer.ImageType == ["DERIVED", "SECONDARY"]
    assert (answer.BurnedInAnnotation, answer.LossyImageCompression) == ("YES", "01")
    assert bundle.version in answer.DerivationDescription
    assert "Research use only" in answer.DerivationDescription
    picture = decode(content, name="answer")
    assert picture.shape[1] == 768
    assert picture[0, 384, 0] > 0, "the image is at the top …"
    assert picture[90:, :, 1].max() == 255, "… and words are below it"


def test_of_the_same_image_and_bundle_its_identifiers_are_the_same(
    photograph: Path, tiny_bundle: Path
) -> None:
    bundle, image = Bundle.open(tiny_bundle), read_image(photograph)
    made = [dicom_answer(photograph, image, bundle, bundle.predict(image)) for _ in range(2)]
    one, other = (dcmread(io.BytesIO(content)) for content in made)
    assert one.SOPInstanceUID == other.SOPInstanceUID != one.SeriesInstanceUID


def test_only_dicom_files_get_one_and_a_damaged_one_does_not_name_the_patient(
    photograph: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle, out = Bundle.open(tiny_bundle), tmp_path / "out"
    nameless = dcmread(photograph)
    del nameless.StudyInstanceUID
    nameless.save_as(tmp_path / "nameless.dcm")
    paths = [photograph, tiny_bundle / "golden-0.png", tmp_path / "nameless.dcm"]
    (_, first), (_, second), (_, third), (_, failed) = predict_files(bundle, paths, dicoms=out)
    assert not any(isinstance(answered, ImageError) for answered in (first, second, third))
    assert [path.stem[:4] for path in out.iterdir()] == ["red-"]
    assert str(failed) == (
        f"{paths[2]}: no DICOM answer can be made: its patient, study or instance is missing or damaged"
    )
