"""A bundle's answer as a DICOM file, to lie in the archive beside the image that it is of."""

import io
import textwrap
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dermtune_bundle.decode import quiet
from dermtune_bundle.errors import DermtuneError, ImageError
from dermtune_bundle.pictures import overlay, thumbnail

if TYPE_CHECKING:
    from pydicom import Dataset

    from dermtune_bundle.bundle import Bundle, Prediction

_SIDE = 768  # pixels, of the picture
_FONT = 18
_COLUMNS = 76  # of text below it


class NoDicomAnswerError(ImageError):
    """The image was answered, but no DICOM file can say so."""


def dicom_answer(source: Path, image: NDArray[np.uint8], bundle: "Bundle", prediction: "Prediction") -> bytes:
    """Picture where the model looked, and write what it says below.

    The file belongs to the same patient and study as the image, names it as its source and is a series of its
    own; of the same image and bundle, its identifiers are the same.

    Args:
        source: the DICOM file of the image.
        image: uint8 (H, W, 3), its pixels.
        bundle: what answered.
        prediction: what it said.

    Returns:
        The DICOM file.

    Raises:
        DermtuneError: highdicom is not installed.
        NoDicomAnswerError: the file lacks what an answer must repeat, such as the study.
    """
    if find_spec("highdicom") is None:
        raise DermtuneError("DICOM answers need highdicom: pip install 'dermtune[dicom]'")
    from highdicom.sc import SCImage
    from pydicom import dcmread
    from pydicom.uid import generate_uid

    small, file = thumbnail(image, _SIDE), io.BytesIO()
    picture = _captioned(overlay(small, prediction.activation), _words(bundle, prediction))
    try:
        with quiet:  # warnings quote names
            reference = dcmread(source, stop_before_pixels=True)
            of = [reference.SOPInstanceUID, bundle.version]
            answer = SCImage.from_ref_dataset(
                reference,
                pixel_array=picture,
                photometric_interpretation="RGB",
                bits_allocated=8,
                coordinate_system="PATIENT",
                patient_orientation=("L", "F"),
                series_instance_uid=generate_uid(entropy_srcs=[*of, "1"]),
                series_number=1,
                sop_instance_uid=generate_uid(entropy_srcs=[*of, "2"]),
                instance_number=1,
                manufacturer="dermtune",
            )
            _say_what_it_is(answer, reference, bundle)
            answer.save_as(file, enforce_file_format=True)
    except (AttributeError, TypeError, ValueError, KeyError):
        raise NoDicomAnswerError(  # without the reason given: it may quote the patient
            f"{source}: no DICOM answer can be made: its patient, study or instance is missing or damaged"
        ) from None
    return file.getvalue()


def _say_what_it_is(answer: "Dataset", reference: "Dataset", bundle: "Bundle") -> None:
    from pydicom import Dataset

    source = Dataset()
    source.ReferencedSOPClassUID = reference.SOPClassUID
    source.ReferencedSOPInstanceUID = reference.SOPInstanceUID
    answer.SourceImageSequence = [source]
    answer.ImageType = ["DERIVED", "SECONDARY"]
    answer.PatientOrientation = None  # a photograph's is not known
    answer.SeriesDescription = "dermtune: research use only"
    answer.DerivationDescription = f"{bundle.manifest.name} {bundle.version}. {bundle.manifest.notice}"
    # the words name no patient, but what the image shows is in the picture too
    for name in ("BurnedInAnnotation", "LossyImageCompression"):
        if name in reference:
            setattr(answer, name, reference[name].value)


def _words(bundle: "Bundle", prediction: "Prediction") -> list[str]:
    titles = {known.name: known.title for known in bundle.manifest.classes}
    probability = prediction.probabilities[prediction.predicted]
    decisions = (
        f"{name}: {'reached' if yes else 'not reached'}" for name, yes in prediction.decisions.items()
    )
    return [
        bundle.manifest.notice,
        *([f"ABSTAINS, do not rely on it: {'; '.join(prediction.abstain)}."] if prediction.abstain else []),
        f"Nearest to: {titles[prediction.predicted]} ({probability:.1%}).",
        f"Malignant: {prediction.malignant_probability:.1%}.",
        f"{'; '.join(decisions)}.",
        f"Cannot be ruled out: {', '.join(titles[name] for name in prediction.prediction_set)}.",
        f"Lit: what speaks for {titles[prediction.predicted]}. {bundle.manifest.name} {bundle.version[:12]}",
    ]


def _captioned(picture: NDArray[np.uint8], words: list[str]) -> NDArray[np.uint8]:
    lines = [line for said in words for line in textwrap.wrap(said, _COLUMNS)]
    font = ImageFont.load_default(_FONT)
    step = _FONT + 6
    page = Image.new("RGB", (_SIDE, picture.shape[0] + step * len(lines) + step), "black")
    page.paste(Image.fromarray(picture), ((_SIDE - picture.shape[1]) // 2, 0))
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        draw.text((step // 2, picture.shape[0] + step // 2 + row * step), line, "white", font)
    return np.array(page)
