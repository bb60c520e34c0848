import pickle
from pathlib import Path
from zipfile import ZipFile

import pytest

from dermtune.sources.files import SourceFiles
from dermtune.sources.names import NamedFiles, image_ids


@pytest.fixture
def files(tmp_path: Path) -> SourceFiles:
    for name in ("one.jpg", "a/one.jpg", "a/two.jpg", "b/two.png", "a/Zoë 3.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    with ZipFile(tmp_path / "more.zip", "w") as packed:
        packed.writestr("c/four.jpg", "four")
    return SourceFiles(tmp_path)


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("one.jpg", "one.jpg"),
        ("a/one.jpg", "a/one.jpg"),
        ("./a//one.jpg", "a/one.jpg"),
        ("a\\one.jpg", "a/one.jpg"),
        ("two.jpg", "a/two.jpg"),
        ("b/two", "b/two.png"),
        ("Zoe\u0308 3", "a/Zoë 3.JPG"),
        ("four", "more.zip/c/four.jpg"),
        ("c/four.jpg", "more.zip/c/four.jpg"),
    ],
)
def test_a_file_is_found_by_its_path_or_its_end(files: SourceFiles, called: str, name: str) -> None:
    found = NamedFiles(files, files.names)
    assert found.find(called) == name
    assert found.content(called)() == files.read(name)


@pytest.mark.parametrize("called", ["", ".", "/", "three", "../one.jpg", "/a/one.jpg", "C:\\a\\one.jpg", "a"])
def test_what_is_no_files_name_is_not_found(files: SourceFiles, called: str) -> None:
    found = NamedFiles(files, files.names)
    assert found.find(called) is None
    with pytest.raises(FileNotFoundError):
        found.content(called)()


def test_of_several_files_that_are_called_so_none_is_guessed(files: SourceFiles) -> None:
    found = NamedFiles(files, files.names)
    assert found.find("two") is None
    with pytest.raises(OSError, match="several files are called so") as raised:
        pickle.loads(pickle.dumps(found.content("two")))()  # noqa: S301
    assert not isinstance(raised.value, FileNotFoundError)
    assert NamedFiles(files, ["a/two.jpg"]).find("two") == "a/two.jpg"


def test_ids_are_unique_and_valid() -> None:
    assert image_ids(["a/one.jpg", "a/two.jpg", "b/TWO.jpg", "b/Foto (3).png"]) == {
        "a/one.jpg": "one",
        "a/two.jpg": "a-two.jpg",
        "b/TWO.jpg": "b-TWO.jpg",
        "b/Foto (3).png": "Foto-3-",
    }


def test_ids_that_are_alike_or_too_long_are_told_apart_by_a_hash() -> None:
    names = ["nv/lesion 1.jpg", "nv/lesion-1.jpg", f"{'x' * 120}.jpg"]
    ids = image_ids(names)
    assert len({one.casefold() for one in ids.values()}) == 3
    assert all(len(one) <= 100 for one in ids.values())
