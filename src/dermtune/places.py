"""Folders and buckets that fsspec reaches, and one line for people where one does not answer."""

import errno
import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from dermtune_bundle.errors import DermtuneError, without_password

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# By default a bucket that does not answer is given up after 25 minutes. s3fs tries five times, so that these
# make it 75 seconds; botocore's own attempts would multiply them.
_S3 = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 15, "retries": {"total_max_attempts": 1}}}
_LOGGER = logging.getLogger(__name__)
_AFTER_HOST = re.compile(r"(https?://[^/\s\"]+)/[^\s\"]*")
_BLOCK = 1 << 20  # bytes asked for at once where reading jumps
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created")  # each store has its own word


@dataclass(frozen=True)
class Place:
    """A folder in a store, such as s3://bucket/folder, whose slashes a Path would lose."""

    url: str

    def __truediv__(self, name: str) -> "Place":
        """What is called so in there."""
        return Place(f"{self.url.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.url


Root = Path | Place
"""A folder, wherever it is."""


@dataclass(frozen=True)
class StoredFile:
    """A file in a store, as it was listed; picklable, for it holds no connection."""

    url: str
    """The place that was listed."""
    path: str
    """What the store calls the file."""
    size: int
    """In bytes."""
    stamp: str
    """Changes when the file does; empty: the store does not tell."""

    @property
    def name(self) -> str:
        """Without folders."""
        return PurePosixPath(self.path).name


def root_of(path: str) -> Root:
    """A folder, from what people write: a path, or a URL."""
    local = path.removeprefix("file://")
    return Place(local) if "://" in local else Path(local)


def stored_files(url: str, failure: type[DermtuneError]) -> dict[str, StoredFile]:
    """The files below a place, by their names in it, in order; of a place that is one file, that one as "".

    A place where nothing is has none: a bucket has no folders.

    Raises:
        DermtuneError: as `failure`: the place cannot be reached, there is no such bucket, or it does not say
            how large a file is; or a link is in it, which is not followed.
    """
    files, root = connected(url, failure)
    with using(url, failure):
        found = files.find(root, detail=True)
        found = {
            path: info or files.info(path) for path, info in found.items()
        }  # some say nothing of one file
    listed = {}
    for path, info in sorted(found.items()):
        name = path.removeprefix(root).removeprefix("/")
        if path.endswith("/"):  # what consoles leave to show a folder
            continue
        if info.get("islink") or info.get("type") != "file":
            raise failure(f"{url}: {name} is a link, which is not followed; put the file there")
        if info.get("size") is None:
            raise failure(f"{url}: does not say how large its files are")
        stamp = next((str(info[word]) for word in _STAMPS if info.get(word)), "")
        listed[name] = StoredFile(url, path, int(info["size"]), stamp)
    return listed


def read_stored(file: StoredFile, failure: type[DermtuneError]) -> bytes:
    """All bytes of a file.

    Raises:
        DermtuneError: as `failure`, whatever hinders: that a store does not answer says nothing of the file.
    """
    with _reading(file, failure):
        content: bytes = connected(file.url, failure)[0].cat_file(file.path)
    return content


def open_stored(
    file: StoredFile, failure: type[DermtuneError], *, in_order: bool = False
) -> io.BufferedReader:
    """A file to read in, here and there, or in order; never more of it than was listed.

    Raises:
        DermtuneError: as `failure`; so does reading, through whatever reads: no OSError that a library could
            take for damage.
    """
    return io.BufferedReader(_Stream(file, failure, in_order=in_order))


class _Stream(io.RawIOBase):
    def __init__(self, file: StoredFile, failure: type[DermtuneError], *, in_order: bool) -> None:
        self._listed, self._failure, self._at = file, failure, 0
        how = {"block_size": 16 * _BLOCK} if in_order else {"block_size": _BLOCK, "cache_type": "blockcache"}
        with _reading(file, failure):
            self._file = connected(file.url, failure)[0].open(file.path, "rb", **how)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        at = (0, self._at, self._listed.size)[whence] + offset
        if at < 0:
            raise OSError(errno.EINVAL, "before the file's start")
        self._at = at
        return at

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._listed.size - self._at))
        with _reading(self._listed, self._failure):
            self._file.seek(self._at)
            data = self._file.read(wanted)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):
            self._file.close()
        super().close()


@contextmanager
def _reading(file: StoredFile, failure: type[DermtuneError]) -> Iterator[None]:
    with using(file.url, failure):
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) or error.errno == errno.EBUSY:  # s3fs of other bytes
                raise OSError(
                    errno.ENOENT, "a file that was listed is gone or was changed; run it again"
                ) from error
            raise


def connected(url: str, failure: type[DermtuneError]) -> tuple[Any, str]:
    """As `open_place`, but once a process: an image is read faster than a connection is made."""
    try:
        return _connected(url)
    except DermtuneError as error:
        raise failure(str(error)) from error


@lru_cache(maxsize=16)
def _connected(url: str) -> tuple[Any, str]:
    return open_place(url, DermtuneError)


def open_place(url: str, failure: type[DermtuneError]) -> tuple[Any, str]:
    """Give the file system behind a folder or a URL such as s3://bucket/folder, and the path there.

    What others write meanwhile is seen: listings are not cached, nor is the file system.

    Raises:
        DermtuneError: as `failure`: fsspec knows no such place, or lacks a package for it.
    """
    settings = _S3 if get_protocol(url) in {"s3", "s3a"} else {}
    with using(url, failure):  # some stores are asked at once
        try:
            files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **settings)
        except ImportError as error:
            extra = ": pip install 'dermtune[s3]'" if settings else ""
            raise failure(f"{url}: {error}{extra}") from error
        except ValueError as error:
            raise failure(f"{url}: {error}") from error
    return files, root


@contextmanager
def using(url: str, failure: type[DermtuneError]) -> Iterator[None]:
    """Tell in one line what a disk, a network or a store raises.

    Raises:
        DermtuneError: as `failure`; its cause is an OSError, which tells that trying again may help.
    """
    try:
        yield
    except DermtuneError:
        raise
    except Exception as error:  # each store's client has a tree of exceptions of its own
        _LOGGER.debug("%s", without_password(url), exc_info=error)
        reason = _reason(error)
        raise failure(f"{url}: cannot be used: {reason}") from OSError(reason)


def _reason(error: Exception) -> str:
    """What went wrong, without a file's name: in an inbox it may be a patient's."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _AFTER_HOST.sub(r"\1", " ".join(text.split()))
