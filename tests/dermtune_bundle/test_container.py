"""A bundle's files, in a folder or in one .zip, whatever somebody did to them."""

import io
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dermtune_bundle import container
from dermtune_bundle.bundle import Bundle, pack_bundle
from dermtune_bundle.container import CHECKSUMS, read_checked
from dermtune_bundle.errors import BundleError, DermtuneError

Change = Callable[[zipfile.ZipFile], None]


@pytest.fixture
def zipped(tiny_bundle: Path) -> Path:
    path = tiny_bundle.parent / "bundle.zip"
    pack_bundle(tiny_bundle, path)
    return path


def test_a_zip_is_the_same_bundle_as_its_folder(tiny_bundle: Path, zipped: Path, tmp_path: Path) -> None:
    assert Bundle.open(zipped).version == Bundle.open(tiny_bundle).version
    pack_bundle(zipped, tmp_path / "again")
    assert read_checked(tmp_path / "again") == read_checked(tiny_bundle)
    pack_bundle(tiny_bundle, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == zipped.read_bytes()


def test_a_copy_never_replaces_what_is_there(tiny_bundle: Path, zipped: Path) -> None:
    with pytest.raises(DermtuneError, match="exists; write to a new name"):
        pack_bundle(tiny_bundle, zipped)


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_zip_is_refused_or_gives_the_same_files(zipped: Path, data: st.DataObject) -> None:
    whole = zipped.read_bytes()
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    other = zipped.with_name("changed.zip")
    other.write_bytes(changed[: data.draw(st.sampled_from([len(changed), len(changed) // 2, 10]))])
    if other.read_bytes() == whole:
        return  # a bit was changed twice
    with pytest.raises(BundleError) as caught:
        read_checked(other)
    assert str(other) in str(caught.value)


def test_what_stands_before_behind_or_between_is_refused(zipped: Path) -> None:
    whole = zipped.read_bytes()
    for changed in (b"#!/bin/sh\n" + whole, whole + b"x", whole[:-2] + b"\x01\x00x"):
        zipped.write_bytes(changed)
        with pytest.raises(BundleError, match=str(zipped)):
            read_checked(zipped)


def test_the_same_files_packed_by_another_program_are_refused_with_what_to_do(
    tiny_bundle: Path, zipped: Path
) -> None:
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in sorted(tiny_bundle.iterdir()):
            archive.write(path, path.name)
    with pytest.raises(BundleError, match="or unpack it and pack it with `dermtune pack`"):
        read_checked(zipped)


def test_a_copy_is_not_written_into_the_bundle(tiny_bundle: Path) -> None:
    with pytest.raises(DermtuneError, match="lies in the bundle, which must stay as it is"):
        pack_bundle(tiny_bundle, tiny_bundle / "out.zip")
    assert Bundle.open(tiny_bundle).version


def add_file(name: str, *, mode: int = stat.S_IFREG | 0o644, content: bytes = b"x") -> Change:
    def change(archive: zipfile.ZipFile) -> None:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, content)

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (add_file("../outside"), r"'\.\./outside' is no file of a bundle"),
        (add_file("/etc/passwd"), "'/etc/passwd' is no file"),
        (add_file("sub/"), "'sub/' is no file"),
        (add_file("link", mode=stat.S_IFLNK | 0o777), "'link' is no file"),
        (add_file("pipe", mode=stat.S_IFIFO | 0o644), "'pipe' is no file"),
        (add_file("model.onnx"), "'model.onnx' is no file"),
        (add_file("extra.txt"), r"extra\.txt: not listed in SHA256SUMS"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_a_zip_adds_is_refused_and_named(zipped: Path, change: Change, reason: str) -> None:
    with zipfile.ZipFile(zipped, "a") as archive:
        change(archive)
    with pytest.raises(BundleError, match=reason):
        Bundle.open(zipped)


def test_a_zip_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(CHECKSUMS, "x" * 1000)
    with pytest.raises(BundleError, match="'SHA256SUMS' is no file of a bundle"):
        read_checked(path)
    path.write_bytes(b"no zip")
    with pytest.raises(BundleError, match=r"no \.zip that can be read"):
        read_checked(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CHECKSUMS, bytes(2 << 20))
    assert path.stat().st_size < 10_000
    with pytest.raises(BundleError, match="'SHA256SUMS' is no file of a bundle"):
        read_checked(path)


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CHECKSUMS, bytes(1000))
    data = bytearray(buffer.getvalue())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(mark) + offset
        data[at : at + 4] = (10).to_bytes(4, "little")
    (tmp_path / "lies.zip").write_bytes(data)
    with pytest.raises(BundleError):
        read_checked(tmp_path / "lies.zip")


def test_too_many_or_too_large_files_are_refused_unread(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tiny_bundle / "huge.bin").open("wb") as file:
        file.truncate(container.MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(BundleError, match="that is no bundle"):
        read_checked(tiny_bundle)
    (tiny_bundle / "huge.bin").unlink()
    monkeypatch.setattr(container, "MAX_FILES", 3)
    with pytest.raises(BundleError, match="that is no bundle"):
        read_checked(tiny_bundle)


def test_a_copy_that_cannot_be_written_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DermtuneError, match="cannot be written"):
        pack_bundle(tiny_bundle, tmp_path / "file" / "x.zip")
    shutil.rmtree(tiny_bundle)
    with pytest.raises(BundleError, match="no such bundle"):
        read_checked(tiny_bundle)
