"""A folder with a folder a class: `melanoma/1.jpg`, or `train/melanoma/1.jpg`."""

from pathlib import PurePosixPath

from dermtune.errors import SourceError
from dermtune.places import Root
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles
from dermtune.sources.names import SPLIT_WORDS, image_ids
from dermtune.table import Split


def class_folders(root: Root) -> list[SourceImage]:
    """List all images: the folder that an image lies in is its label.

    A folder `train`, `val`, `valid`, `validation` or `test` anywhere above a class's folder is the split. A
    .zip counts as a folder of its name. Images that lie in no class's folder have no label.

    Folders tell neither lesions nor patients: each file counts as a lesion of its own, so images of one
    lesion may end in different splits. Where that is known, give a table instead (source `listed`).

    Raises:
        SourceError: there is no such folder, or no image in it.
    """
    files = SourceFiles(root)
    names = files.images()
    if not names:
        raise SourceError(f"{root}: no images here or below; set ingest.path to the folder of class folders")
    ids = image_ids(names)
    return [_image(name, ids[name], files) for name in names]


def _image(name: str, image_id: str, files: SourceFiles) -> SourceImage:
    label, split = _label_and_split(name)
    return SourceImage(image_id, image_id, label, name, files.content(name), split=split)


def _label_and_split(name: str) -> tuple[str, Split | None]:
    folders = [folder.removesuffix(".zip") for folder in PurePosixPath(name).parts[:-1]]
    splits = [SPLIT_WORDS[folder.lower()] for folder in folders if folder.lower() in SPLIT_WORDS]
    is_class = bool(folders) and folders[-1].lower() not in SPLIT_WORDS
    return folders[-1] if is_class else "", splits[-1] if splits else None
