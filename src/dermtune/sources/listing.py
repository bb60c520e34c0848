"""The choice of `ingest.source`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.bcn20000 import bcn20000
from dermtune.sources.class_folders import class_folders
from dermtune.sources.derm7pt import derm7pt
from dermtune.sources.dermamnist import dermamnist
from dermtune.sources.dicom_folder import dicom_folder
from dermtune.sources.ham10000 import ham10000
from dermtune.sources.isic2019 import isic2019
from dermtune.sources.isic2020 import isic2020
from dermtune.sources.isic2024 import isic2024
from dermtune.sources.isic_archive import isic_archive
from dermtune.sources.listed import listed
from dermtune.sources.pad_ufes_20 import pad_ufes_20
from dermtune.sources.ph2 import ph2
from dermtune.sources.synthetic import synthetic

PartName = Literal[
    "ham10000",
    "isic2019",
    "isic2020",
    "isic2024",
    "isic_archive",
    "bcn20000",
    "derm7pt",
    "ph2",
    "pad_ufes_20",
    "dermamnist",
    "class_folders",
    "listed",
    "dicom_folder",
]
SourceName = Literal["synthetic", "several", PartName]
_OF_A_FOLDER: Mapping[SourceName, Callable[[Root], list[SourceImage]]] = {
    "ham10000": ham10000,
    "isic2019": isic2019,
    "isic2020": isic2020,
    "isic2024": isic2024,
    "isic_archive": isic_archive,
    "bcn20000": bcn20000,
    "derm7pt": derm7pt,
    "ph2": ph2,
    "pad_ufes_20": pad_ufes_20,
    "dermamnist": dermamnist,
    "class_folders": class_folders,
    "dicom_folder": dicom_folder,
}


def list_images(
    source: SourceName,
    path: Root,
    *,
    parts: Mapping[PartName, str],
    columns: Mapping[str, str],
    lesions: int,
    seed: int,
) -> list[SourceImage]:
    """List a source's images.

    Args:
        source: which.
        path: its folder, here or in a store.
        parts: of `several`: each one's folder below `path`.
        columns: of `listed`: from a field to a column of the table.
        lesions: of `synthetic`: how many are drawn …
        seed: … and from where.

    Raises:
        SourceError: the source is not laid out as expected.
    """
    if source == "several":
        if not parts:
            raise SourceError("ingest.source is several: name them in ingest.parts")
        return [
            replace(image, lesion_id=image.lesion_id and f"{part}/{image.lesion_id}")
            for part, folder in parts.items()
            for image in list_images(
                part, path / folder, parts={}, columns=columns, lesions=lesions, seed=seed
            )
        ]
    if source == "synthetic":
        images = synthetic(lesions=lesions, seed=seed)
    elif source == "listed":
        images = listed(path, columns)
    else:
        images = _OF_A_FOLDER[source](path)
    return [replace(image, source=source) for image in images]
