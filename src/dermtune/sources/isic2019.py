"""ISIC 2019: HAM10000, BCN20000 and MSK together, eight classes; the test part has "none of these" as well.

Folders and their .zip files count alike.
"""

from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.isic import one_hot, read_table, unlisted
from dermtune.sources.rows import Row, known, number, sex
from dermtune.table import Split

LICENSE = "CC-BY-NC-4.0"  # challenge2019.isic-archive.com/data.html, "Copyright and Attribution"
ATTRIBUTION = (
    "BCN_20000 Dataset: (c) Department of Dermatology, Hospital Clínic de Barcelona;"
    " HAM10000 Dataset: (c) by ViDIR Group, Department of Dermatology, Medical University of Vienna,"
    " https://doi.org/10.1038/sdata.2018.161;"
    " MSK Dataset: (c) Anonymous, https://arxiv.org/abs/1710.05006, https://arxiv.org/abs/1902.03368"
)

_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
_NONE_OF_THEM = "UNK"
_SMALLER = "_downsampled"


def isic2019(root: Root) -> list[SourceImage]:
    """List ISIC 2019's images: the rows of its tables, then any image that they lack.

    Where images of the official test set are there, the official split is given.

    Raises:
        SourceError: the training table is missing, or a table lacks a column.
    """
    files = SourceFiles(root)
    train = files.require("ISIC_2019_Training_GroundTruth.csv")
    test = files.find("ISIC_2019_Test_GroundTruth.csv")
    parts: dict[Split, list[Row]] = {
        "train": _rows(files, train, "ISIC_2019_Training_Metadata.csv"),
        "test": _rows(files, test, "ISIC_2019_Test_Metadata.csv") if test else [],
    }
    has_test = any(_find(files, row["image"]) for row in parts["test"])
    rows = [_image(files, row, split if has_test else None) for split, part in parts.items() for row in part]
    return rows + unlisted(files, rows, license=LICENSE, attribution=ATTRIBUTION)


def _rows(files: SourceFiles, truth: str, metadata: str) -> list[Row]:
    found = files.find(metadata)
    known_of = {row["image"]: row for row in read_table(files, found, ("image",))} if found else {}
    rows = read_table(files, truth, ("image", *_CLASSES))
    return [known_of.get(row["image"], {}) | row for row in rows]


def _find(files: SourceFiles, image: str) -> str | None:
    # the same image goes by either name: copies of the set differ in which
    other = image.removesuffix(_SMALLER) if image.endswith(_SMALLER) else image + _SMALLER
    return files.image(image) or files.image(other)


def _image(files: SourceFiles, row: Row, split: Split | None) -> SourceImage:
    image_id = row["image"]
    name = _find(files, image_id)
    return SourceImage(
        image_id=image_id,
        lesion_id=known(row.get("lesion_id")) or image_id,
        label=one_hot(row, (*_CLASSES, _NONE_OF_THEM)),
        path=name or f"{image_id}.jpg",
        content=files.content(name),
        age=number(row.get("age_approx")),
        sex=sex(row.get("sex")),
        site=known(row.get("anatom_site_general")),
        split=split,
        license=LICENSE,
        attribution=ATTRIBUTION,
    )
