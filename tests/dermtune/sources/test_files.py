import os
import pickle
import unicodedata
import zipfile
from functools import partial
from pathlib import Path

import pytest

from dermtune.errors import SourceError
from dermtune.sources import SourceImage
from dermtune.sources.files import SourceFiles, file_key, file_sizes


def lay_out(root: Path) -> SourceFiles:
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.JPG").write_bytes(b"a")
    (root / "images" / ".hidden.jpg").write_bytes(b"")
    (root / "Labels.csv").write_text("id")
    with zipfile.ZipFile(root / "part.zip", "w") as packed:
        packed.writestr("inner/b.png", b"b")
        packed.writestr("../../c.png", b"c")
        packed.writestr("__MACOSX/b.png", b"")
    return SourceFiles(root)


def test_images_are_known_by_any_suffix_of_their_format(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JFIF", "c.jpe", "d.tiff", "e.gif", "f.txt"):
        (tmp_path / name).write_bytes(b"")
    assert sorted(SourceFiles(tmp_path).images()) == ["a.jpg", "b.JFIF", "c.jpe", "d.tiff"]


def test_files_of_folders_and_zips_are_found_alike(tmp_path: Path) -> None:
    files = lay_out(tmp_path)
    assert sorted(files.names) == [
        "Labels.csv",
        "images/a.JPG",
        "part.zip/../../c.png",
        "part.zip/inner/b.png",
    ]
    assert files.find("labels*.csv") == "Labels.csv"
    assert files.find("nothing", "images/*") == "images/a.JPG"
    assert [files.image(name) for name in ("a", "a.JPG", "images/a.JPG", "b", "z", "")] == [
        "images/a.JPG", "images/a.JPG", "images/a.JPG", "part.zip/inner/b.png", None, None,
    ]  # fmt: skip
    contents = [pickle.loads(pickle.dumps(files.content(files.image(name)))) for name in ("a", "b", "c")]  # noqa: S301
    assert [content() for content in contents] == [b"a", b"b", b"c"]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "..\\secret.png", "nowhere", ""])
def test_a_name_that_leads_elsewhere_is_not_found(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    files = lay_out(tmp_path / "root")
    with pytest.raises(FileNotFoundError):
        files.content(files.image(name) or name)()


def test_links_are_followed_inside_the_folder_alone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    lay_out(root)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "images" / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "images" / "in.jpg").symlink_to(root / "images" / "a.JPG")
    (tmp_path / "link").symlink_to(root)
    for folder in (root, tmp_path / "link"):
        files = SourceFiles(folder)
        assert files.content(files.image("in"))() == b"a"
        with pytest.raises(PermissionError, match="leads out of the source's folder"):
            files.content(files.image("out"))()


def test_a_link_to_a_folder_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    lay_out(tmp_path / "root")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root/mel").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="root/mel: a link to a folder"):
        SourceFiles(tmp_path / "root")


def test_a_zip_that_names_a_file_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            packed.writestr("a.png", b"2")
    with pytest.raises(SourceError, match=r"a\.zip/a\.png: two files are called so"):
        SourceFiles(tmp_path)


def test_a_damaged_stream_in_a_zip_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.png", bytes(range(256)) * 40)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[40:60] = b"\xff" * 20
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(OSError, match=r"damaged in a\.zip"):
        SourceFiles(tmp_path).content("a.zip/a.png")()


def test_the_key_of_a_file_tells_where_it_is_and_how(tmp_path: Path) -> None:
    files = lay_out(tmp_path / "root")

    def key() -> str | None:
        return file_key(SourceImage("a", "a", "nv", "a", files.content("images/a.JPG")))

    keys = [key()]
    path = tmp_path / "root/images/a.JPG"
    path.write_bytes(b"b")
    keys.append(key())
    path.rename(tmp_path / "a.JPG")
    keys.append(key())
    path.symlink_to(tmp_path / "a.JPG")
    keys.append(key())
    assert keys[2] is None
    assert len(set(keys)) == 4
    assert file_key(SourceImage("a", "a", "nv", "a", bytes)) is None


def test_accents_are_spelt_in_one_way(tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFD", "müller.jpg")).write_bytes(b"m")
    files = SourceFiles(tmp_path)
    assert files.content(files.image(unicodedata.normalize("NFC", "müller")))() == b"m"
    assert files.content(files.image(unicodedata.normalize("NFD", "müller")))() == b"m"


def test_damaged_zips_and_members_are_told(tmp_path: Path) -> None:
    files = lay_out(tmp_path)
    packed = tmp_path / "part.zip"
    damaged = packed.read_bytes().replace(b"b.pngb", b"b.pngX")
    packed.write_bytes(damaged)
    os.utime(packed, ns=(1, 1))
    with pytest.raises(OSError, match=r"damaged in part\.zip"):
        files.content("part.zip/inner/b.png")()
    with pytest.raises(SourceError, match=r"inner/b\.png: damaged in"):
        files.read("part.zip/inner/b.png")
    packed.write_bytes(b"PK")
    with pytest.raises(SourceError, match=r"part\.zip: not a \.zip that can be read"):
        SourceFiles(tmp_path)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such folder; set ingest\.path"):
        SourceFiles(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"no a\.csv or b\.csv here"):
        SourceFiles(tmp_path).require("a.csv", "b.csv")
    with pytest.raises(SourceError, match="nowhere: No such file"):
        SourceFiles(tmp_path).read("nowhere")


def test_sizes_are_known_without_reading_of_files_and_by_a_sample_of_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(1234))
    with zipfile.ZipFile(tmp_path / "part.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("b.png", bytes(56789))
    files = SourceFiles(tmp_path)
    listed = [
        SourceImage(name, name, "mel", name, files.content(name))
        for name in ("a.jpg", "part.zip/b.png", "no")
    ]
    read = []

    def drawn(number: int) -> bytes:
        read.append(number)
        return bytes(1000 + number)

    images = [*listed, *(SourceImage("d", "d", "mel", "d", partial(drawn, number)) for number in range(5000))]
    sizes = file_sizes(images)
    assert sizes[:3] == [1234, 56789, 0]
    assert sum(sizes[3:]) == pytest.approx(sum(1000 + number for number in range(5000)), rel=0.03)
    assert len(read) == 32
    (tmp_path / "a.jpg").unlink()
    assert file_sizes(images[:1]) == [0]
