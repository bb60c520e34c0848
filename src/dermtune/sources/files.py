"""The files of a source, by name: those of its folder, and those inside its .zip files.

A name that a table gives is looked up among these names and never opened as a path, so that no table can
lead out of the folder. Nothing is unpacked. The folder may be in a store that fsspec reaches; a store that
fails ends the run, for of the file it says nothing.
"""

import errno
import hashlib
import os
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import lru_cache, partial
from lzma import LZMAError
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from dermtune.errors import SourceError
from dermtune.places import Place, Root, StoredFile, open_stored, read_stored, stored_files
from dermtune.sources import SourceImage
from dermtune_bundle.decode import MAX_BYTES, SUFFIXES

_DAMAGED = (
    BadZipFile, EOFError, KeyError, LZMAError, NotImplementedError, RuntimeError, ValueError, zlib.error,
)  # fmt: skip
_EACH, _MOST = 100, 32  # of images that are no files, how many are read to tell their size
_OUTSIDE = "a link that leads out of the source's folder"


class SourceFiles:
    """The files below a folder; of `images.zip`, its members as `images.zip/…`."""

    def __init__(self, root: Root) -> None:
        """List them.

        Raises:
            SourceError: there is no such folder, a .zip in it is damaged, or its store does not answer.
        """
        self.root = root
        self._files: dict[str, partial[bytes]] = {}
        found = _walk(root) if isinstance(root, Path) else _walk_place(root)
        for name, read in sorted(found, key=itemgetter(0)):
            if _nfc(name) in self._files:
                raise SourceError(f"{root / name}: two files are called so; keep one")
            self._files[_nfc(name)] = read
        self._stems: dict[str, str] | None = None

    @property
    def names(self) -> Sequence[str]:
        """Names relative to the root, with `/`, sorted."""
        return [*self._files]

    def find(self, *patterns: str) -> str | None:
        """The first file whose last part, or whole name, is like a pattern (case does not count); None: none.

        Earlier patterns go before later ones.
        """
        for pattern in patterns:
            for name in self._files:
                if any(fnmatch(part.casefold(), pattern.casefold()) for part in (_base(name), name)):
                    return name
        return None

    def require(self, *patterns: str) -> str:
        """As `find`.

        Raises:
            SourceError: there is none.
        """
        found = self.find(*patterns)
        if found is None:
            raise SourceError(
                f"{self.root}: no {' or '.join(patterns)} here; set ingest.path to the source's folder"
            )
        return found

    def images(self) -> list[str]:
        """Names of the files that are images by their suffix."""
        return [name for name in self._files if PurePosixPath(name).suffix.lower() in SUFFIXES]

    def image(self, image_id: str) -> str | None:
        """The name of the image file called so, with or without its suffix and folders; None: none."""
        if self._stems is None:
            images = self.images()
            self._stems = {_base(name): name for name in images}
            self._stems |= {PurePosixPath(name).stem: name for name in images}
        wanted = _nfc(image_id)
        return wanted if wanted in self._files else self._stems.get(wanted)

    def content(self, name: str | None) -> Callable[[], bytes]:
        """What reads a file, picklable; of a name that is not here, what raises FileNotFoundError."""
        return self._files.get(name or "", partial(_missing, name or ""))

    def where(self, name: str) -> Path | StoredFile | None:
        """The file itself, to be read in (`open_where`); None: it is in a .zip, or a link leads out to it."""
        read = self._files[name]
        if read.func is _read:
            return None if _leads_out(*read.args) else Path(read.args[1])
        return read.args[0] if read.func is _fetch else None

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            SourceError: it cannot be read.
        """
        try:
            return self.content(name)()
        except OSError as error:
            raise SourceError(f"{self.root / name}: {error.strerror or error}") from error


def _refuse(error: OSError) -> None:
    raise SourceError(f"{error.filename}: {error.strerror}; no file in it could be listed") from error


def _walk(root: Path) -> Iterable[tuple[str, "partial[bytes]"]]:
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder; set ingest.path to the source's folder")
    for folder, folders, names in os.walk(root, onerror=_refuse):
        for one in folders:
            if Path(folder, one).is_symlink() and not _is_hidden(one):
                raise SourceError(
                    f"{Path(folder, one)}: a link to a folder, which is not followed; put the folder there,"
                    " or set ingest.path to where it is"
                )
        folders[:] = [one for one in folders if not _is_hidden(one)]
        for name in names:
            if _is_hidden(name):
                continue
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if path.suffix.lower() == ".zip":
                yield from _members(relative, path, path)
            else:
                yield relative, partial(_read, root, path)


def _walk_place(place: Place) -> Iterable[tuple[str, "partial[bytes]"]]:
    listed = stored_files(place.url, SourceError)
    if not listed or "" in listed:
        raise SourceError(f"{place}: no such folder, or an empty one; set ingest.path to the source's folder")
    for name, file in listed.items():
        if _has_hidden(name):
            continue
        if name.lower().endswith(".zip"):
            yield from _members(name, file, place / name)
        else:
            yield name, partial(_fetch, file)


def _members(name: str, where: Path | StoredFile, shown: Root) -> Iterable[tuple[str, "partial[bytes]"]]:
    try:
        with open_where(where) as file, ZipFile(file) as opened:
            members = opened.infolist()
    except (OSError, BadZipFile, NotImplementedError, ValueError) as error:
        raise SourceError(f"{shown}: not a .zip that can be read: {error}; download it again") from error
    for one in members:
        if not one.is_dir() and not _has_hidden(one.filename):
            yield f"{name}/{one.filename}", partial(_read_member, where, one.filename)


def open_where(where: Path | StoredFile) -> BinaryIO:
    """Open a file of a source, here or in a store.

    Raises:
        OSError: it is here, and cannot be read.
        SourceError: its store fails, now or while it is read.
    """
    return where.open("rb") if isinstance(where, Path) else open_stored(where, SourceError)


def _read(root: Path, path: Path) -> bytes:
    if _leads_out(root, path):
        raise PermissionError(errno.EPERM, _OUTSIDE)
    _require_small(path.stat().st_size)
    return path.read_bytes()


def _leads_out(root: Path, path: Path) -> bool:
    return path.is_symlink() and not path.resolve().is_relative_to(root.resolve())


def _fetch(file: StoredFile) -> bytes:
    _require_small(file.size)
    return read_stored(file, SourceError)


def _read_member(where: Path | StoredFile, name: str) -> bytes:
    try:
        opened = _open(where)
        _require_small(opened.getinfo(name).file_size)
        return opened.read(name)
    except _DAMAGED as error:
        raise OSError(errno.EIO, f"damaged in {where.name}") from error


def _require_small(size: int) -> None:
    if size > MAX_BYTES:
        raise OSError(errno.EFBIG, f"over {MAX_BYTES >> 20} MiB")


@lru_cache(maxsize=16)
def _open(where: Path | StoredFile) -> ZipFile:
    """Opened once a process: to read the list of a large .zip takes longer than an image."""
    return ZipFile(where if isinstance(where, Path) else open_where(where))


def _missing(name: str) -> bytes:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def file_key(image: SourceImage) -> str | None:
    """Place and state of an image's files, as a hash; None: they are none of `SourceFiles`, or are gone."""
    stamps = [_stamp(content) for content in (image.content, image.mask) if content is not None]
    if None in stamps:
        return None
    named = "\n".join([image.source, image.image_id, *map(str, stamps)])
    return hashlib.sha256(named.encode()).hexdigest()


def file_sizes(images: Sequence[SourceImage]) -> list[int]:
    """Bytes of each image's file, of a packed one when unpacked; one that is gone counts as none.

    What is no file (drawn images, those of one large array) counts as a few of it do, which are read: one in
    a hundred, 32 at most. Ingest packs a file as large as it is, or smaller; one that it turns into a PNG,
    such as a HEIC or a compressed DICOM file, grows.
    """
    sizes = [_size(image.content) for image in images]
    unknown = [image.content for image, size in zip(images, sizes, strict=True) if size is None]
    step = max(_EACH, -(-len(unknown) // _MOST))
    read = []
    for content in unknown[::step]:
        with suppress(OSError):  # ingest tells of it
            read.append(len(content()))
    usual = sum(read) // max(1, len(read))
    return [usual if size is None else size for size in sizes]


def _size(content: Callable[[], bytes]) -> int | None:
    """None: it is none of `SourceFiles`."""
    if not isinstance(content, partial):
        return None
    try:
        if content.func is _read:
            return int(content.args[1].stat().st_size)
        if content.func is _fetch:
            return int(content.args[0].size)
        if content.func is _read_member:
            return _open(content.args[0]).getinfo(content.args[1]).file_size
    except (OSError, *_DAMAGED):
        return 0
    return 0 if content.func is _missing else None


def _stamp(content: Callable[[], bytes]) -> str | None:
    """Where a file really is, its size, and the times at which it, or what is known of it, last changed."""
    if not isinstance(content, partial) or content.func not in {_read, _read_member, _fetch}:
        return None
    path = content.args[1] if content.func is _read else content.args[0]
    name = content.args[1] if content.func is _read_member else ""
    if isinstance(path, StoredFile):
        return f"{path.url} {path.path} {name} {path.size} {path.stamp}" if path.stamp else None
    try:
        found, real = path.stat(), path.resolve()
    except OSError:
        return None
    times = f"{found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"
    return f"{path.absolute()} {real} {name} {found.st_size} {times}"


def _has_hidden(name: str) -> bool:
    return any(map(_is_hidden, set(PurePosixPath(name).parts) - {".."}))


def _is_hidden(name: str) -> bool:
    """What operating systems leave beside files."""
    return name.startswith((".", "__MACOSX"))


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _nfc(name: str) -> str:
    """One spelling of names that look alike: macOS keeps accents apart from their letters."""
    return unicodedata.normalize("NFC", name)
