"""Folders and files in a store, for a command that wants them here: fetched before it, sent after it.

Stages map their arrays into memory, so they read and write disks alone. Beside a folder that was sent lies a
list of its files with their SHA-256, `FOLDER.dermtune.json`; while they are being sent, it says so. What was
left half-way, or was exchanged, is therefore not taken. A folder without a list, as other programs put it
there, is taken as it is.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from dermtune.errors import DataError
from dermtune.fingerprint import file_sha256
from dermtune.places import StoredFile, connected, open_stored, stored_files, using
from dermtune.progress import progress
from dermtune_bundle.errors import DermtuneError

_CHUNK = 8 << 20  # bytes
_AGAIN = "run what wrote it again"


@dataclass(frozen=True)
class _List:
    """What lies beside a folder that was sent."""

    is_whole: bool
    """False: it is being sent, or was left half-way."""
    files: dict[str, str]
    """SHA-256 by name."""


@contextmanager
def fetched(url: str, *, max_files: int | None = None, max_bytes: int | None = None) -> Iterator[Path]:
    """A copy of a file or a folder, for as long as it is needed; errors meanwhile name the original.

    Args:
        url: where it is.
        max_files: how many files a folder may have; None: any number.
        max_bytes: how large it may be; None: as there is room for.

    Raises:
        DataError: it is not there, too large, or not whole.
    """
    with tempfile.TemporaryDirectory(prefix="dermtune-") as scratch:
        copy = Path(scratch, _last(url))
        with _named(copy, url):
            _fetch(url, copy, max_files=max_files, max_bytes=max_bytes)
            yield copy


@contextmanager
def sent(url: str) -> Iterator[Path]:
    """Where to write a file or a folder that is sent afterwards; after an error, nothing is.

    Of torchrun's processes, the first one sends: it alone writes.

    Raises:
        DataError: there is a folder of other files, or it cannot be sent; then it is kept here.
    """
    name = _last(url)
    _check_target(url)
    scratch = Path(tempfile.mkdtemp(prefix="dermtune-"))
    made = scratch / name
    try:
        with _named(made, url):
            yield made
    except BaseException:
        shutil.rmtree(scratch)
        raise
    try:
        if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0":
            if not made.exists() or (made.is_dir() and not any(made.iterdir())):
                raise DataError(f"{url}: nothing was written to send")
            _send(made, url)
    except DermtuneError as error:
        raise DataError(f"{error}; what was made is kept in {made}") from error
    shutil.rmtree(scratch)


def _last(url: str) -> str:
    return _safe(url, PurePosixPath(url).name)


@contextmanager
def _named(copy: Path, url: str) -> Iterator[None]:
    try:
        yield
    except DermtuneError as error:
        raise type(error)(str(error).replace(str(copy), url.rstrip("/"))) from error


def _fetch(url: str, copy: Path, *, max_files: int | None, max_bytes: int | None) -> None:
    files = stored_files(url, DataError)
    # after the files: one that is there was put there after the list
    listed = None if "" in files else _read_list(url)
    if listed is not None:
        files = _as_listed(url, files, listed)
    if not files:
        raise DataError(f"{url}: no such file or folder")
    size = sum(file.size for file in files.values())
    if (max_files is not None and len(files) > max_files) or (max_bytes is not None and size > max_bytes):
        raise DataError(f"{url}: {len(files)} files of {size >> 20} MiB; more than can be meant")
    if size > (free := shutil.disk_usage(copy.parent).free):
        raise DataError(
            f"{url}: has {size >> 20} MiB, and there is room for {free >> 20} in {tempfile.gettempdir()}; set"
            " TMPDIR to a folder on a larger disk"
        )
    for name, file in progress(files.items(), "fetch", len(files), unit="files"):
        path = copy / _safe(url, name) if name else copy
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise DataError(f"{url}: {name!r} lies in what is a file itself; rename one") from error
        with open_stored(file, DataError, in_order=True) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        if listed is not None and file_sha256(path) != listed.files[name]:
            raise DataError(f"{url}: {name} is not what {_list_of(url)} says; {_AGAIN}")


def _as_listed(url: str, files: Mapping[str, StoredFile], listed: _List) -> dict[str, StoredFile]:
    if not listed.is_whole:
        raise DataError(f"{url}: is being written, or was left half-way; {_AGAIN}")
    if lacking := sorted(set(listed.files) - set(files)):
        raise DataError(f"{url}: {lacking[0]} is missing, which {_list_of(url)} names; {_AGAIN}")
    return {name: files[name] for name in listed.files}


def _safe(url: str, name: str) -> str:
    """A name that stays in its folder, whatever a store calls a file."""
    if {"", ".", ".."} & set(name.split("/")) or "\\" in name or ":" in name:
        raise DataError(f"{url}: {name!r} cannot be the name of a file here; rename it")
    return name


def _check_target(url: str) -> None:
    """Before the work, which may take hours: does the store answer, and is nothing of others in the way?"""
    if _is_all(url):
        raise DataError(f"{url}: name a folder in it, such as {url.rstrip('/')}/dermtune")
    files = stored_files(url, DataError)
    if files and "" not in files and _read_list(url) is None:
        raise DataError(f"{url}: holds files that dermtune did not send; choose another folder, or empty it")


def _send(made: Path, url: str) -> None:
    store, root = connected(url, DataError)
    with using(url, DataError):
        if made.is_file():
            store.put_file(str(made), root)
            return
        before = _read_list(url) or _List(is_whole=True, files={})
        paths = sorted(path for path in made.rglob("*") if path.is_file())
        digests = {path.relative_to(made).as_posix(): file_sha256(path) for path in paths}
        _write_list(url, _List(is_whole=False, files=before.files | digests), made.parent)
        for name in progress(digests, "send", len(digests), unit="files"):
            store.put_file(str(made / name), f"{root}/{name}")
        for name in sorted(set(before.files) - set(digests)):
            if store.exists(f"{root}/{name}"):
                store.rm_file(f"{root}/{name}")
        _write_list(url, _List(is_whole=True, files=digests), made.parent)


def _is_all(url: str) -> bool:
    """Whether it is a whole bucket."""
    return len(PurePosixPath(url.partition("://")[2]).parts) < 2  # noqa: PLR2004 (a bucket and what is in it)


def _list_of(url: str) -> str:
    return f"{url.rstrip('/')}.dermtune.json"


def _read_list(url: str) -> _List | None:
    """None: nothing was sent there."""
    if _is_all(url):
        return None
    place = _list_of(url)
    store, root = connected(url, DataError)
    with using(place, DataError):
        try:
            found = _List(**json.loads(store.cat_file(_list_of(root))))
            return _List(
                bool(found.is_whole), {_safe(url, name): str(found.files[name]) for name in found.files}
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise DataError(f"{place}: damaged: {error}; {_AGAIN}") from error


def _write_list(url: str, listed: _List, scratch: Path) -> None:
    store, root = connected(url, DataError)
    path = scratch / "list.json"
    path.write_text(json.dumps(asdict(listed), indent=2) + "\n", encoding="utf-8")
    with using(_list_of(url), DataError):
        store.put_file(str(path), _list_of(root))
