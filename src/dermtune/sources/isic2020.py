"""ISIC 2020 (Rotemberg et al. 2021): melanoma among each patient's other lesions.

The table is the challenge's or Kaggle's `train.csv`; the images are JPEG or DICOM, in folders or .zip files.
"""

from collections.abc import Mapping, Sequence

from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.isic import read_table, unlisted
from dermtune.sources.rows import Row, known, number, sex
from dermtune.splits import join_groups

LICENSE = "CC-BY-NC-4.0"  # challenge2020.isic-archive.com, table "License"
ATTRIBUTION = (
    "International Skin Imaging Collaboration, SIIM-ISIC 2020 Challenge Dataset, doi 10.34970/2020-ds01"
)

# The second version names lesions.
_TABLES = ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "train.csv")
_COLUMNS = ("image_name", "diagnosis", "benign_malignant")
_COPIES = "ISIC_2020_Training_Duplicates.csv"
_PAIR = ("image_name_1", "image_name_2")


def isic2020(root: Root) -> list[SourceImage]:
    """List ISIC 2020's images: the rows of its table, then any image that it lacks.

    Images that the official list of duplicates pairs share a lesion. The test set has no diagnoses in public:
    its images come without a label.

    Raises:
        SourceError: the table is missing or lacks a column.
    """
    files = SourceFiles(root)
    table = read_table(files, files.require(*_TABLES), _COLUMNS)
    lesions = {row["image_name"]: known(row.get("lesion_id")) or row["image_name"] for row in table}
    if copies := files.find(_COPIES):
        pairs = [(row[_PAIR[0]], row[_PAIR[1]]) for row in read_table(files, copies, _PAIR)]
        lesions = _joined(lesions, pairs)
    rows = [_image(files, row, lesions[row["image_name"]]) for row in table]
    return rows + unlisted(files, rows, license=LICENSE, attribution=ATTRIBUTION)


def _joined(lesions: Mapping[str, str], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The lesion of each image, where the lesions of a pair are one, transitively: the first of them."""
    shown = [*lesions.items(), *((image, lesions.get(image, image)) for pair in pairs for image in pair)]
    linked: list[int | None] = [None] * len(lesions)
    linked += [place for place in range(len(pairs)) for _ in range(2)]
    groups = join_groups([lesion for _, lesion in shown], linked).tolist()
    first: dict[int, str] = {}
    return {
        image: first.setdefault(group, lesion) for (image, lesion), group in zip(shown, groups, strict=True)
    }


def _image(files: SourceFiles, row: Row, lesion_id: str) -> SourceImage:
    image_id = row["image_name"]
    # Kaggle gives each image both ways; the JPEG is the smaller
    name = files.image(f"{image_id}.jpg") or files.image(image_id)
    return SourceImage(
        image_id=image_id,
        lesion_id=lesion_id,
        label=_label(row),
        path=name or f"{image_id}.jpg",
        content=files.content(name),
        patient_id=known(row.get("patient_id")),
        age=number(row.get("age_approx")),
        sex=sex(row.get("sex")),
        site=known(row.get("anatom_site_general_challenge")),
        license=LICENSE,
        attribution=ATTRIBUTION,
    )


def _label(row: Row) -> str:
    if diagnosis := known(row["diagnosis"]):
        return diagnosis
    word = row["benign_malignant"].casefold()
    return f"{word}, not further said" if word in {"benign", "malignant"} else ""
