"""New images through a bundle, once each: answers and failures are kept in one SQLite file.

An image is known by the SHA-256 of its bytes, so that a copy under another name is not answered twice, and a
run that was killed goes on where it was. Another bundle answers every image anew.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from dermtune.engine import LOCAL, ComputeConfig, each
from dermtune.errors import DataError, SourceError
from dermtune.places import open_place, using
from dermtune_bundle.bundle import Bundle, pack_bundle
from dermtune_bundle.decode import MAX_BYTES, SUFFIXES, count_pictures, decode
from dermtune_bundle.errors import BundleError, ImageError
from dermtune_bundle.predict import failure, record

_TABLES = """
CREATE TABLE IF NOT EXISTS scores (
  sha256 TEXT, bundle TEXT, at TEXT, path TEXT, answer TEXT, error TEXT,
  sharpness REAL, brightness REAL, side INTEGER, embedding BLOB, PRIMARY KEY (sha256, bundle));
CREATE TABLE IF NOT EXISTS seen (
  path TEXT, stamp TEXT, bundle TEXT, sha256 TEXT, PRIMARY KEY (path, bundle));
"""
EMBEDDING: Final = np.dtype("<f2")
"""How the numbers of an embedding are stored."""
_NOTHING: Final[tuple[object, ...]] = (None,) * 4  # was measured of a file that is no image


@dataclass(frozen=True)
class Scored:
    """What a run found in the inbox."""

    answered: int
    failed: int
    known: int
    """Files that were answered, or had failed, before, or are copies of such."""


@dataclass(frozen=True)
class _File:
    path: str
    """Below the inbox."""
    stamp: str
    """Changes when the file does: what its place says of it."""
    size: int


@dataclass(frozen=True)
class _Look:
    """What one look at a file brought."""

    file: _File
    sha256: str
    is_final: bool
    """Else it is tried again."""
    row: dict[str, object] | None
    """The record of `dermtune predict`; None: the image was known."""
    measured: tuple[object, ...]
    """Sharpness, brightness, side and embedding."""


def score_inbox(
    bundle: Path, inbox: str, out: Path, *, key: Path | None = None, compute: ComputeConfig = LOCAL
) -> Scored:
    """Answer every new image of an inbox.

    Args:
        bundle: what answers, a folder or a .zip; checked, its golden cases too, wherever it runs.
        inbox: a folder, or a place that fsspec reaches; searched through and through.
        out: the SQLite file; made if it is not there. Its table `scores` has a row an image and bundle:
            `answer` is the record of `dermtune predict` as JSON; `error` says why there is none, or null. The
            other columns are what `drift` looks at.
        key: public key that must have signed the bundle; None: any will do.
        compute: where; every process must reach the inbox.

    Raises:
        BundleError: the bundle is damaged, not signed by `key`, or computes otherwise here.
        SourceError: the inbox cannot be reached.
        DataError: `out` is damaged, or in use for more than a minute.
    """
    opened = Bundle.open(bundle, key=key)
    opened.check_golden()
    counts = {"answered": 0, "failed": 0, "known": 0}
    with _database(out) as scores:
        found = scores.execute("SELECT path, stamp FROM seen WHERE bundle = ?", (opened.version,))
        seen = set(found.fetchall())
        found = scores.execute("SELECT sha256 FROM scores WHERE bundle = ?", (opened.version,))
        known = frozenset(sha256 for (sha256,) in found)
        files = list(_files(inbox))
        new = [file for file in files if (file.path, file.stamp) not in seen]
        counts["known"] = len(files) - len(new)
        make = (
            partial(_make_look, opened, inbox, known)
            if compute.engine == "local"
            else partial(_unpack, _packed(bundle), inbox, known)
        )
        for look in each(compute, make, new, chunk=16):
            counts[_keep(scores, opened.version, look)] += 1
    return Scored(**counts)


def _packed(bundle: Path) -> bytes:
    """A bundle as one file, for machines that do not reach its folder."""
    with TemporaryDirectory() as folder:
        path = bundle
        if bundle.is_dir():
            pack_bundle(bundle, path := Path(folder, "bundle.zip"))
        return path.read_bytes()


def _unpack(packed: bytes, inbox: str, known: frozenset[str]) -> Callable[[_File], _Look]:
    with TemporaryDirectory() as folder:
        path = Path(folder, "bundle.zip")
        path.write_bytes(packed)
        bundle = Bundle.open(path, threads=1)
    bundle.check_golden()
    return _make_look(bundle, inbox, known)


def _make_look(bundle: Bundle, inbox: str, known: frozenset[str]) -> Callable[[_File], _Look]:
    files, root = open_place(inbox, SourceError)

    def read(file: _File) -> bytes:
        with using(inbox, SourceError):
            try:
                content: bytes = files.cat_file(f"{root}/{file.path}")
            except PermissionError as error:
                raise ImageError(f"{file.path}: may not be read") from error
        return content

    def look(file: _File) -> _Look:
        refused, is_final, data = "", True, f"{file.path} {file.stamp}".encode()
        if file.size > MAX_BYTES:
            refused = f"{file.path}: larger than {MAX_BYTES >> 20} MiB"
        else:
            try:
                data = read(file)
            except ImageError as error:  # the inbox is there, and the others can be read
                refused, is_final = str(error), False
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 in known:
            row, measured = None, _NOTHING
        elif refused:
            row, measured = failure(file.path, bundle, refused), _NOTHING
        else:
            row, measured = _answer(bundle, file.path, data)
        return _Look(file, sha256, is_final, row, measured)

    return look


def _keep(scores: sqlite3.Connection, bundle: str, look: _Look) -> str:
    """Keep what is known of one file, in one transaction: it is either done and known, or neither."""
    outcome, row, file = "known", look.row, look.file
    with scores:
        if row is not None:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            kept = scores.execute(
                "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (look.sha256, bundle, now, file.path, json.dumps(row), row["error"], *look.measured),
            )
            if kept.rowcount:  # else it is a copy of another that is new
                outcome = "failed" if row["error"] else "answered"
        if look.is_final:
            scores.execute(
                "INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)",
                (file.path, file.stamp, bundle, look.sha256),
            )
    return outcome


def _answer(bundle: Bundle, path: str, data: bytes) -> tuple[dict[str, object], tuple[object, ...]]:
    """The record, and sharpness, brightness, side and embedding."""
    try:
        image = decode(data, name=path, suffix=PurePosixPath(path).suffix)
        found = bundle.predict(image, pictures=count_pictures(data))
    except (ImageError, BundleError) as error:
        return failure(path, bundle, str(error)), _NOTHING
    measured = (*astuple(found.quality), found.embedding.astype(EMBEDDING).tobytes())
    return record(path, bundle, found), measured


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=60)) as scores:
            scores.execute("PRAGMA journal_mode = WAL")
            scores.executescript(_TABLES)
            yield scores
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be written as a SQLite file: {error}") from error


def _files(inbox: str) -> Iterator[_File]:
    """The image files of an inbox, in order of their names; links are not followed, hidden files are none."""
    files, root = open_place(inbox, SourceError)

    with using(inbox, SourceError):
        # A bucket has no empty folders: an inbox whose last image was taken out is not there.
        if isinstance(files, LocalFileSystem) and not files.isdir(root):
            raise SourceError(f"{inbox}: no such inbox")
        found = files.find(root, detail=True)
    for path, info in sorted(found.items()):
        name = PurePosixPath(path)
        usable = name.suffix.lower() in SUFFIXES and not name.name.startswith(".") and not info.get("islink")
        if usable and info.get("type") == "file":
            stamp = info.get("ETag") or info.get("mtime") or info.get("created") or ""
            yield _File(
                str(name.relative_to(root)),
                f"{info.get('size')} {stamp}",
                int(info.get("size") or 0),
            )
