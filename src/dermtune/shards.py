"""Few large files: original images packed in tars, and arrays that are read memory-mapped.

DVC is slow with many small files, and training needs random access; both formats give it.
"""

import io
import math
import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray

from dermtune.errors import DataError
from dermtune_bundle.decode import decode
from dermtune_bundle.files import atomic_path

_MAX_SHARD_BYTES = 1 << 30
_BLOCK = tarfile.BLOCKSIZE


class ImagePacker:
    """Packs files into `images-000.tar`, `images-001.tar`, …, each at most about 1 GiB.

    A plain tar is enough: any tool lists it, and a file lies in it whole, at a known offset.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shard: tuple[str, tarfile.TarFile, ExitStack] | None = None
        self._count = 0

    def add(self, name: str, data: bytes) -> tuple[str, int, int]:
        """Append one file; gives its (shard, offset, size)."""
        if self._shard is None or self._shard[1].offset > _MAX_SHARD_BYTES:
            self.close()
            self._shard = self._open(f"images-{self._count:03d}.tar")
            self._count += 1
        shard, tar, _ = self._shard
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
        return shard, tar.offset - -(-len(data) // _BLOCK) * _BLOCK, len(data)

    def close(self) -> None:
        """Finish the last tar and give it its name."""
        if self._shard is not None:
            self._shard[2].close()
            self._shard = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        elif self._shard is not None:
            self._shard[2].__exit__(kind, None, None)

    def _open(self, shard: str) -> tuple[str, tarfile.TarFile, ExitStack]:
        stack = ExitStack()
        temporary = stack.enter_context(atomic_path(self._folder / shard))
        return shard, stack.enter_context(tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT)), stack


class Place(NamedTuple):
    """Where an image's original bytes are; the fields are columns of the image table."""

    image_id: str
    shard: str
    offset: int
    size: int


def places(table: pd.DataFrame) -> list[Place]:
    """Where the images of a table are, in its order."""
    return [Place(*row) for row in table[list(Place._fields)].itertuples(index=False, name=None)]


class PackedImages:
    """Reads packed files out of the tars of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """The bytes of one file.

        Raises:
            DataError: the shard is missing, misnamed or shorter than the table says.
        """
        if PurePosixPath(shard).name != shard:
            raise DataError(f"image table: {shard!r} is no shard's name; re-run ingest")
        try:
            with (self._folder / shard).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{self._folder / shard}: {error.strerror}; re-run ingest") from error
        if len(data) != size:
            raise DataError(f"{self._folder / shard}: ends before byte {offset + size}; re-run ingest")
        return data

    def decode(self, place: Place) -> NDArray[np.uint8]:
        """The pixels of one image, uint8 (H, W, 3), as the clinicians' side decodes them."""
        return decode(self.read(place.shard, place.offset, place.size), name=place.image_id)


class ArrayWriter:
    """Writes a .npy file row by row, from first to last.

    Plain writes, no memory map: the pages of a map that was written count as this process's memory.
    """

    def __init__(self, path: Path, file: BinaryIO, shape: tuple[int | None, ...], dtype: DTypeLike) -> None:
        self._path, self._file = path, file
        self._rows_expected, self._shape, self._dtype = shape[0], shape[1:], np.dtype(dtype)
        self._rows = 0
        _write_header(file, (shape[0] or 0, *self._shape), self._dtype)

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows, (n, …) of the array's own type."""
        if rows.dtype != self._dtype or rows.shape[1:] != self._shape:
            raise ValueError(
                f"{self._path}: expected {self._dtype} {self._shape}, got {rows.dtype} {rows.shape[1:]}"
            )
        self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)

    def finish(self) -> None:
        """Make sure that every row was written, or say how many they are."""
        if self._rows_expected is None:
            self._file.seek(0)
            _write_header(self._file, (self._rows, *self._shape), self._dtype)
        elif self._rows != self._rows_expected:
            raise ValueError(f"{self._path}: {self._rows} rows written of {self._rows_expected}")


def _write_header(file: BinaryIO, shape: tuple[int | None, ...], dtype: np.dtype[Any]) -> None:
    """Numpy leaves room in it for any number of rows, so that it may be written over."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def create_array(path: Path, shape: tuple[int | None, ...], dtype: DTypeLike) -> Iterator[ArrayWriter]:
    """A .npy file to be written row by row, which takes its name only when the block ends well.

    Args:
        path: the file.
        shape: None for the number of rows: as many as will be written.
        dtype: of the array.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        writer = ArrayWriter(path, file, shape, dtype)
        yield writer
        writer.finish()


@contextmanager
def create_rows(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[Path]:
    """A .npy file whose rows are written in any order, by several processes, with `write_rows`.

    Yields the name that it has until the block ends well. A row that nobody writes is zero: who calls counts.
    """
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            _write_header(file, shape, np.dtype(dtype))
            file.truncate(file.tell() + math.prod(shape) * np.dtype(dtype).itemsize)
        yield temporary


def write_rows(path: Path, first: int, batches: Iterable[NDArray[Any]]) -> int:
    """Write batches (n, …) into a file of `create_rows`, from row `first` on; gives how many rows they were.

    Other processes write other rows of the file. It is opened for writing alone: who reads as well may, on
    NFS, write whole pages, with what others had not yet written at their edges.

    Raises:
        ValueError: they are of another type or shape, or more than the file has room for.
    """
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell() + first * math.prod(shape[1:]) * dtype.itemsize
    with open(path, "wb", buffering=0, opener=_keep_content) as file:
        file.seek(start)
        row = first
        for batch in batches:
            row += len(batch)
            if (batch.dtype, batch.shape[1:]) != (dtype, shape[1:]) or row > shape[0]:
                raise ValueError(
                    f"{path}: rows to {row} of {batch.dtype} {batch.shape[1:]} do not fit {dtype} {shape}"
                )
            left = np.ascontiguousarray(batch).data.cast("B")
            while left:  # one write may take less than it was given
                left = left[file.write(left) :]
    return row - first


def _keep_content(path: str, flags: int) -> int:
    return os.open(path, flags & ~(os.O_CREAT | os.O_TRUNC))


def read_batches(array: NDArray[Any], size: int, rows: range | None = None) -> Iterator[NDArray[Any]]:
    """The rows of an array that `open_array` gave, in order, at most `size` at a time, each in memory.

    Read from the file, not through the map: memory does not grow with the number of rows. `rows` are some
    that follow each other; None: all.
    """
    rows = range(len(array)) if rows is None else rows
    if not isinstance(array, np.memmap) or isinstance(array.base, np.memmap):  # of a slice, the file's start
        raise TypeError("expected a whole array that open_array gave")
    with Path(str(array.filename)).open("rb", buffering=0) as file:
        file.seek(array.offset + rows.start * math.prod(array.shape[1:]) * array.dtype.itemsize)
        for start in range(rows.start, rows.stop, size):
            batch = np.empty((min(size, rows.stop - start), *array.shape[1:]), array.dtype)
            view = batch.data.cast("B")
            while view:  # one read may give less than was asked for
                read = file.readinto(view)
                if not read:
                    raise DataError(f"{array.filename}: ends early; re-run the stage that writes it")
                view = view[read:]
            yield batch


def open_array(path: Path, *, rows: int | None = None) -> NDArray[Any]:
    """A .npy file, memory-mapped and read-only.

    Raises:
        DataError: the file is missing, is no array, or has another number of rows than the image table.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable array; re-run the stage that writes it") from error
    if rows is not None and len(array) != rows:
        raise DataError(f"{path}: {len(array)} rows for {rows} images of the table; re-run the stages before")
    return array


def remove_views(folder: Path) -> None:
    """Remove the views of an earlier run, of which there may have been more."""
    for path in (*folder.glob("train-*.npy"), *folder.glob("plain.npy")):
        path.unlink()


def view_paths(folder: Path) -> list[Path]:
    """The training arrays of a stage, `train-00.npy`, `train-01.npy`, …: one a view.

    Raises:
        DataError: there is none.
    """
    paths = sorted(folder.glob("train-*.npy"))
    if not paths:
        raise DataError(f"{folder}: no train-00.npy; re-run the stage that writes it")
    return paths
