"""Few large files: original images packed in tars, and arrays that are read memory-mapped.

DVC is slow with many small files, and training needs random access; both formats give it.
"""

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray

from dermtune.errors import DataError
from dermtune_bundle.decode import decode
from dermtune_bundle.files import atomic_path

_MAX_SHARD_BYTES = 1 << 30
_BLOCK = tarfile.BLOCKSIZE


class ImagePacker:
    """Packs original files into `images-000.tar`, `images-001.tar`, …, each at most about 1 GiB.

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
    """Reads original files out of the tars of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """The original bytes of one file.

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


@contextmanager
def create_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[NDArray[Any]]:
    """A writable, memory-mapped .npy file that takes its name only when the block ends well."""
    with atomic_path(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
        yield array
        array.flush()


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
    for path in folder.glob("train-*.npy"):
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
