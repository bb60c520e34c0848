import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermtune import shards
from dermtune.errors import DataError
from dermtune.shards import (
    ImagePacker,
    PackedImages,
    create_array,
    create_rows,
    open_array,
    read_batches,
    view_paths,
    write_rows,
)


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=20))
def test_every_packed_file_is_read_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, files: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    with ImagePacker(folder) as packer:
        places = [packer.add(f"{number}.jpg", data) for number, data in enumerate(files)]
    assert [PackedImages(folder).read(*place) for place in places] == files


def test_a_shard_is_a_plain_tar_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with ImagePacker(tmp_path / name) as packer:
            packer.add("läsion-" + "x" * 120 + ".jpg", b"pixels")
    shard = tmp_path / "a" / "images-000.tar"
    with tarfile.open(shard) as tar:
        assert [member.name for member in tar] == ["läsion-" + "x" * 120 + ".jpg"]
    assert shard.read_bytes() == (tmp_path / "b" / "images-000.tar").read_bytes()


def test_a_full_shard_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MAX_SHARD_BYTES", 1000)
    with ImagePacker(tmp_path) as packer:
        places = [packer.add(f"{number}", bytes([number]) * 700) for number in range(4)]
    assert [place[0] for place in places] == [
        "images-000.tar",
        "images-001.tar",
        "images-002.tar",
        "images-003.tar",
    ]
    assert PackedImages(tmp_path).read(*places[3]) == b"\3" * 700


def test_a_packer_that_fails_leaves_no_half_shard(tmp_path: Path) -> None:
    def pack() -> None:
        with ImagePacker(tmp_path) as packer:
            packer.add("a", b"pixels")
            raise KeyError

    with pytest.raises(KeyError):
        pack()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard", ["../images-000.tar", "/etc/passwd", "a/b"])
def test_a_shard_name_with_a_path_is_refused(tmp_path: Path, shard: str) -> None:
    with pytest.raises(DataError, match="no shard's name"):
        PackedImages(tmp_path).read(shard, 0, 1)


def test_a_missing_or_short_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="re-run ingest"):
        PackedImages(tmp_path).read("images-000.tar", 0, 1)
    (tmp_path / "images-000.tar").write_bytes(b"short")
    with pytest.raises(DataError, match="ends before byte 12"):
        PackedImages(tmp_path).read("images-000.tar", 2, 10)


def test_an_array_is_written_whole_and_read_memory_mapped(tmp_path: Path) -> None:
    with create_array(tmp_path / "train-00.npy", (3, 2), "float16") as array:
        array.append(np.array([[1, 2]], np.float16))
        array.append(np.array([[3, 4], [5, 6]], np.float16))
    read = open_array(tmp_path / "train-00.npy", rows=3)
    assert isinstance(read, np.memmap)
    assert read.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert view_paths(tmp_path) == [tmp_path / "train-00.npy"]


def test_an_array_that_lacks_rows_or_has_others_is_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="1 rows written of 2"),
        create_array(tmp_path / "a.npy", (2, 2), "u1") as a,
    ):
        a.append(np.zeros((1, 2), np.uint8))
    with (
        pytest.raises(ValueError, match=r"expected uint8 \(2,\)"),
        create_array(tmp_path / "a.npy", (1, 2), "u1") as a,
    ):
        a.append(np.zeros((1, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_batches_are_the_rows_in_order_and_in_memory(tmp_path: Path, size: int) -> None:
    rows = np.arange(7 * 6, dtype=np.float16).reshape(7, 2, 3)
    np.save(tmp_path / "a.npy", rows)
    batches = list(read_batches(open_array(tmp_path / "a.npy"), size))
    assert np.array_equal(np.concatenate(batches), rows)
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert not any(isinstance(batch, np.memmap) for batch in batches)


def test_a_part_of_an_array_is_refused(tmp_path: Path) -> None:
    """It would be read from the file's start."""
    np.save(tmp_path / "a.npy", np.arange(10))
    for part in (open_array(tmp_path / "a.npy")[5:], np.arange(10)):
        with pytest.raises(TypeError, match="a whole array that open_array gave"):
            list(read_batches(part, 2))


def test_an_array_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((100, 1000)))
    array = open_array(path)
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(DataError, match=r"a\.npy: ends early"):
        list(read_batches(array, 10))


def test_an_array_of_another_length_than_the_table_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "val.npy", np.zeros(3))
    with pytest.raises(DataError, match="3 rows for 4 images"):
        open_array(tmp_path / "val.npy", rows=4)


def test_a_pickled_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "val.npy", np.array([{"code": "runs"}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a readable array"):
        open_array(tmp_path / "val.npy")


def test_no_views_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train-00\.npy"):
        view_paths(tmp_path)


def test_rows_are_written_in_any_order_and_twice_is_as_once(tmp_path: Path) -> None:
    whole = np.arange(60, dtype="float16").reshape(10, 3, 2)
    path = tmp_path / "deep/a.npy"
    with create_rows(path, whole.shape, "float16") as temporary:
        for first in (7, 0, 7, 4):
            stop = {0: 4, 4: 7, 7: 10}[first]
            batches = (whole[row : row + 2][: stop - row] for row in range(first, stop, 2))
            assert write_rows(temporary, first, batches) == stop - first
        assert not path.exists()
    assert np.array_equal(open_array(path, rows=10), whole)
    np.save(tmp_path / "b.npy", whole)
    assert path.read_bytes() == (tmp_path / "b.npy").read_bytes()
    found = [*read_batches(open_array(path), 2, range(3, 8))]
    assert [len(batch) for batch in found] == [2, 2, 1]
    assert np.array_equal(np.concatenate(found), whole[3:8])


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rows = np.zeros((2, 3), "float16")
    for first, batch in ((9, rows), (0, rows.astype("float32")), (0, rows[:, :2])):
        with (
            pytest.raises(ValueError, match="do not fit"),
            create_rows(tmp_path / "a.npy", (10, 3), "float16") as temporary,
        ):
            write_rows(temporary, first, [batch])
    assert [*tmp_path.iterdir()] == []
