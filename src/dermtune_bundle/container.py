"""A bundle's files, as a folder or as one .zip: read within limits, and held against SHA256SUMS.

No name in a bundle leads anywhere: names are flat, and what is in memory once is what is checked and used.
"""

import hashlib
import io
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from dermtune_bundle.errors import BundleError, DermtuneError
from dermtune_bundle.files import atomic_path

CHECKSUMS: Final = "SHA256SUMS"
SIGNATURE: Final = "SHA256SUMS.sig"
MAX_FILES: Final = 1000
MAX_BYTES: Final = 2 << 30
"""Of all files together."""
_UNIX: Final = 3
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_CHECKSUM_LINE = re.compile(rf"(?P<digest>[0-9a-f]{{64}})  (?P<name>{_NAME})")
_HOW_TO_MEND = "the bundle is damaged or was changed: fetch it again"


def read_checked(path: Path) -> dict[str, bytes]:
    """Read a bundle's files, and hold each against SHA256SUMS.

    Args:
        path: the bundle's folder, or its .zip.

    Raises:
        BundleError: a file is missing, added, no regular file, or has other bytes; the message names it.
    """
    files = _read_zip(path) if path.is_file() else _read_folder(path)
    if CHECKSUMS not in files:
        raise BundleError(f"{path / CHECKSUMS}: missing; {_HOW_TO_MEND}")
    digests = _parse_checksums(files[CHECKSUMS], path / CHECKSUMS)
    if extra := sorted(files.keys() - digests.keys() - {CHECKSUMS, SIGNATURE}):
        raise BundleError(f"{path / extra[0]}: not listed in {CHECKSUMS}; {_HOW_TO_MEND}")
    for name, digest in digests.items():
        if name not in files:
            raise BundleError(f"{path / name}: missing; {_HOW_TO_MEND}")
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise BundleError(f"{path / name}: its bytes are not those of {CHECKSUMS}; {_HOW_TO_MEND}")
    return files


def checksums(files: Mapping[str, bytes]) -> str:
    """The text of SHA256SUMS, as `sha256sum --check` reads it."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))


def require_outside(bundle: Path, place: Path) -> None:
    """Hold a place to write to against a bundle, in whose folder a further file would be damage.

    Raises:
        DermtuneError: it lies in there.
    """
    if place.absolute().is_relative_to(bundle.absolute()):
        raise DermtuneError(f"{place}: lies in the bundle, which must stay as it is; write elsewhere")


def write_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a bundle's files: into one .zip, if `path` ends so, or into a folder.

    SHA256SUMS comes last, so that a folder without it is no bundle yet; a .zip appears whole or not at all.
    Of the same files, a .zip has the same bytes.
    """
    ordered = sorted(files, key=lambda name: (name.startswith(CHECKSUMS), name))
    if path.suffix.lower() != ".zip":
        for name in ordered:
            with atomic_path(path / name) as temporary:
                temporary.write_bytes(files[name])
        return
    with atomic_path(path) as temporary:
        temporary.write_bytes(_zipped(files, ordered))


def _zipped(files: Mapping[str, bytes], ordered: Sequence[str]) -> bytes:
    """One .zip, the same bytes on every machine: weights are hardly smaller packed, so that they are not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in ordered:
            entry = zipfile.ZipInfo(name)  # dated 1980, as zip's time begins
            entry.create_system = _UNIX
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _parse_checksums(data: bytes, source: Path) -> dict[str, str]:
    digests: dict[str, str] = {}
    text = data.decode("ascii", errors="replace")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        match = _CHECKSUM_LINE.fullmatch(line)
        if match is None or match["name"] in {*digests, CHECKSUMS, SIGNATURE}:
            raise BundleError(f"{source}: line {number} is not '<sha256>  <file name>'; {_HOW_TO_MEND}")
        digests[match["name"]] = match["digest"]
    return digests


def _read_folder(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle; a bundle is a folder or .zip that dermtune wrote")
    files: dict[str, bytes] = {}
    left = MAX_BYTES
    for path in sorted(folder.iterdir()):
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path}: is a link or no regular file; {_HOW_TO_MEND}")
            left -= status.st_size
            _require_room(folder, files=len(files) + 1, left=left)
            files[path.name] = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}") from error
    return files


def _read_zip(path: Path) -> dict[str, bytes]:
    """The files of a .zip that is, byte for byte, as `write_files` makes it."""
    files: dict[str, bytes] = {}
    name = ""
    try:
        _require_room(path, files=0, left=MAX_BYTES - path.stat().st_size)
        whole = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            for entry in archive.infolist():
                name = entry.filename
                usual = stat.S_IFMT(entry.external_attr >> 16) == stat.S_IFREG
                stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
                if not re.fullmatch(_NAME, name) or name in files or not usual or not stored:
                    raise BundleError(f"{path}: {name!r} is no file of a bundle; {_HOW_TO_MEND}")
                _require_room(path, files=len(files) + 1, left=len(whole) - entry.file_size)
                files[name] = archive.read(entry)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OverflowError) as error:
        raise BundleError(f"{path}: no .zip that can be read, at {name!r}; {_HOW_TO_MEND}") from error
    if _zipped(files, list(files)) != whole:
        raise BundleError(
            f"{path}: holds more than its files, or was packed by another program; {_HOW_TO_MEND}, "
            "or unpack it and pack it with `dermtune pack`"
        )
    return files


def _require_room(path: Path, *, files: int, left: int) -> None:
    if files > MAX_FILES or left < 0:
        raise BundleError(f"{path}: more than {MAX_FILES} files or {MAX_BYTES >> 30} GiB; that is no bundle")
