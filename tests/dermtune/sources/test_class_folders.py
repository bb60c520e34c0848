from pathlib import Path
from zipfile import ZipFile

import pytest

from dermtune.errors import SourceError
from dermtune.sources.class_folders import class_folders


def lay_out(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_the_folder_is_the_label(tmp_path: Path) -> None:
    lay_out(tmp_path, "melanoma/1.jpg", "nevus/2.PNG", "nevus/of 2020/3.jpg", "4.jpg", "nevus/notes.txt")
    found = {image.path: (image.image_id, image.lesion_id, image.label) for image in class_folders(tmp_path)}
    assert found == {
        "4.jpg": ("4", "4", ""),
        "melanoma/1.jpg": ("1", "1", "melanoma"),
        "nevus/2.PNG": ("2", "2", "nevus"),
        "nevus/of 2020/3.jpg": ("3", "3", "of 2020"),
    }


def test_folders_above_are_the_split(tmp_path: Path) -> None:
    names = ("Train/mel/1.jpg", "valid/mel/1.jpg", "test/data/nv/3.jpg", "train/4.jpg", "validation/nv/5.jpg")
    images = {image.path: image for image in class_folders(lay_out(tmp_path / "x", *names))}
    assert {path: (image.label, image.split) for path, image in images.items()} == {
        "Train/mel/1.jpg": ("mel", "train"),
        "valid/mel/1.jpg": ("mel", "val"),
        "test/data/nv/3.jpg": ("nv", "test"),
        "train/4.jpg": ("", "train"),
        "validation/nv/5.jpg": ("nv", "val"),
    }
    assert images["Train/mel/1.jpg"].image_id == "Train-mel-1.jpg"
    assert images["valid/mel/1.jpg"].image_id == "valid-mel-1.jpg"


def test_a_zip_counts_as_a_folder(tmp_path: Path) -> None:
    for name, member in (("data", "train/mel/1.jpg"), ("test", "nv/2.jpg"), ("nevus", "3.jpg")):
        with ZipFile(tmp_path / f"{name}.zip", "w") as packed:
            packed.writestr(member, member)
    images = class_folders(tmp_path)
    assert [(image.label, image.split, image.content().decode()) for image in images] == [
        ("mel", "train", "train/mel/1.jpg"),
        ("nevus", None, "3.jpg"),
        ("nv", "test", "nv/2.jpg"),
    ]


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no images here or below"):
        class_folders(tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        class_folders(tmp_path / "none")
