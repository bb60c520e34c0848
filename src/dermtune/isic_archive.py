"""Fetch images of the ISIC Archive that a search finds, through the Archive's own isic-cli.

Only what asks the Archive is taken from isic-cli: its command would also ask PyPI for a newer version, set up
Sentry, and use a stored login. So the Archive's API is asked, then the addresses of images that it gives,
and no one else.
"""

import csv
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, urlsplit

from filelock import FileLock, Timeout
from rich.progress import Progress

from dermtune.errors import SourceError
from dermtune.progress import progress
from dermtune.sources.rows import Row, plain_license, read_rows
from dermtune_bundle.files import atomic_path

try:  # the extra [isic], which brings all three
    from isic_cli.io.http import download_image, get_images, get_num_images
    from isic_cli.session import ISIC_RETRY_STRATEGY, IsicCliSession, get_session
    from requests import HTTPError, RequestException
    from tenacity import RetryError
except ImportError:
    HAS_ISIC_CLI = False
else:
    HAS_ISIC_CLI = True

API = "https://api.isic-archive.com/api/v2/"
_PAGE = 100  # the API's largest; images' addresses expire, so one page is downloaded before the next is asked
_THREADS = 10  # as isic-cli
_FIRST = ("isic_id", "attribution", "copyright_license")  # isic-cli's first columns; the rest by name
_ID = re.compile(r"ISIC_[0-9]+")  # it becomes a file's name
_PARTIAL = ".ISIC_partial-"
_LEFTOVERS = ".ISIC_*"  # what a kill leaves: ours, and atomic_path's
_SHOWN = 5  # images named in one message
_BAD_QUERY = {400, 422}
_DICTIONARY = "https://www.isic-archive.com/data-dictionary"


@dataclass(frozen=True)
class Fetched:
    """How many images a search found, and what became of them."""

    found: int
    downloaded: int
    already_there: int
    left_out: int
    """Under a licence that was not asked for, of those looked at until `limit` was reached."""


@dataclass(frozen=True)
class _Found:
    isic_id: str
    row: Row
    size: int
    answer: dict[str, Any]
    """As isic-cli gives and takes it."""


@dataclass(frozen=True)
class _Done:
    row: Row
    downloaded: bool = False
    failure: str | None = None


def fetch(
    query: str, out: Path, *, limit: int | None = None, licenses: Sequence[str] = (), api: str = API
) -> Fetched:
    """Download the images that a search finds, as a guest: those that are public.

    Whole images that are there are kept and not fetched again, so an interrupted fetch goes on where it was,
    and a further search adds to the folder.

    Args:
        query: in the Archive's words, such as `diagnosis_3:"Nevus" AND image_type:dermoscopic`; empty: all.
        out: folder to write: `images/ISIC_*.jpg`, `metadata.csv` (a row an image, with its
            `copyright_license` and `attribution`) and `attribution.txt`.
        limit: at most so many images; None: all.
        licenses: only images under one of these, such as `CC-0`; others are not downloaded. Empty: all.
        api: address of the Archive's API.

    Returns:
        The counts.

    Raises:
        SourceError: isic-cli is not installed, the Archive can't be reached or does not understand the query,
            nothing is found, an image can't be had (the others are there then), or the disk is full.
    """
    if not HAS_ISIC_CLI:
        raise SourceError("fetching from the ISIC Archive needs isic-cli: pip install 'dermtune[isic]'")
    api = api.rstrip("/") + "/"
    with _told(query, api, out):
        found = _count(query, api)
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".fetch.lock", blocking=False):
            return _fetch(query, out, api=api, found=found, limit=limit, licenses=licenses)


def _count(query: str, api: str) -> int:
    # isic-cli tries for 20 minutes: right in a long fetch, but the first question tells soon what is wrong
    with IsicCliSession(api, retry_strategy=ISIC_RETRY_STRATEGY.new(connect=2, status=3)) as session:
        found = int(get_num_images(session, query))
    if not found:
        raise SourceError(
            f"the ISIC Archive has no image for {query!r}: its fields and their values, where case counts,"
            f" are in {_DICTIONARY}"
        )
    return found


def _fetch(
    query: str, out: Path, *, api: str, found: int, limit: int | None, licenses: Sequence[str]
) -> Fetched:
    folder, table = out / "images", out / "metadata.csv"
    folder.mkdir(exist_ok=True)
    for leftover in folder.glob(_LEFTOVERS):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    rows = _read_table(table)
    left_out: Counter[str] = Counter()
    counts = {"downloaded": 0, "already there": 0}
    failed = []
    with get_session(api) as session:
        # isic-cli puts the query into the address as it is, where & and + have another meaning
        images = map(_found, get_images(session, quote(query, safe="")))
        wanted = islice(_under(licenses, images, left_out), limit)
        total = found if limit is None else min(found, limit)
        try:
            for done in progress(_download(wanted, folder), "fetch", total):
                rows[done.row["isic_id"]] = done.row
                if done.failure:
                    failed.append(f"{done.row['isic_id']} ({done.failure})")
                else:
                    counts["downloaded" if done.downloaded else "already there"] += 1
        finally:  # no image stays without its licence, whatever happens to the others
            if rows:
                _write(table, rows)
    if failed:
        raise SourceError(
            f"{out}: {len(failed)} images could not be had: {', '.join(failed[:_SHOWN])}; run it again: the"
            " others are kept"
        )
    if left_out and not any(counts.values()):
        raise SourceError(
            f"all {left_out.total()} images are left out: their licences are {', '.join(sorted(left_out))}"
        )
    return Fetched(found, counts["downloaded"], counts["already there"], left_out.total())


def _found(answer: dict[str, Any]) -> _Found:
    isic_id, metadata = answer["isic_id"], answer["metadata"]
    if not _ID.fullmatch(isic_id):
        raise ValueError(isic_id)
    values = {name: answer[name] for name in _FIRST} | metadata["acquisition"] | metadata["clinical"]
    row = {name: "" if value is None else str(value) for name, value in values.items()}
    return _Found(isic_id, row, answer["files"]["full"]["size"], answer)


def _under(licenses: Sequence[str], images: Iterable[_Found], left_out: Counter[str]) -> Iterator[_Found]:
    wanted = {plain_license(one) for one in licenses}
    for image in images:
        license_ = image.row["copyright_license"]
        if not wanted or plain_license(license_) in wanted:
            yield image
        else:
            left_out[license_] += 1


def _download(images: Iterator[_Found], folder: Path) -> Iterator[_Done]:
    """Download what is not there whole; a file gets its name in `folder` only when it is complete."""
    there = {path.stem: path.stat().st_size for path in folder.iterdir()}
    with TemporaryDirectory(prefix=_PARTIAL, dir=folder) as partial_, ThreadPoolExecutor(_THREADS) as pool:
        while page := list(islice(images, _PAGE)):
            lacking = {}
            for image in page:
                if there.get(image.isic_id) == image.size:
                    yield _Done(image.row)
                else:
                    lacking[image.isic_id] = image
            failures = pool.map(partial(_try, Path(partial_)), lacking.values())
            for image, failure in zip(lacking.values(), failures, strict=True):
                if not failure:
                    _keep(next(Path(partial_).glob(f"{image.isic_id}.*")), folder)
                yield _Done(image.row, downloaded=not failure, failure=failure)


def _try(folder: Path, image: _Found) -> str | None:
    """Download an image; what comes back is why the Archive does not give it."""
    quiet = Progress(disable=True)
    try:
        download_image(image.answer, to=folder, progress=quiet, task=quiet.add_task(""))
    except HTTPError as error:
        return _answer(error)
    return None


def _keep(file: Path, folder: Path) -> None:
    with atomic_path(folder / file.name) as temporary:
        file.replace(temporary)


def _read_table(table: Path) -> dict[str, Row]:
    """What an earlier fetch wrote, by image."""
    if not table.exists():
        return {}
    rows = read_rows(table.read_bytes(), name=str(table), required=_FIRST)
    return {row["isic_id"]: row for row in rows}


def _write(table: Path, rows: Mapping[str, Row]) -> None:
    """Write the table as isic-cli does, and beside it whom to name, those with the most images first."""
    columns = [*_FIRST, *sorted({name for row in rows.values() for name in row}.difference(_FIRST))]
    with atomic_path(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows.values())
    names = Counter(row["attribution"] for row in rows.values())
    with atomic_path(table.with_name("attribution.txt")) as temporary:
        ordered = sorted(names, key=lambda name: (-names[name], name))
        temporary.write_text("\n\n".join(ordered), encoding="utf-8")


@contextmanager
def _told(query: str, api: str, out: Path) -> Iterator[None]:
    """Tell in one line what the Archive, the network or the disk raises."""
    archive, again = (
        f"the ISIC Archive ({urlsplit(api).netloc})",
        "run it again: images that are here are kept",
    )
    try:
        yield
    except Timeout as error:
        raise SourceError(f"{out}: another fetch writes here; wait for its end") from error
    except HTTPError as error:
        if getattr(error.response, "status_code", None) in _BAD_QUERY:
            raise SourceError(
                f"the ISIC Archive does not understand {query!r}: a query is like"
                f' diagnosis_3:"Nevus" AND sex:male, with the fields of {_DICTIONARY}'
            ) from error
        raise SourceError(f"{archive} answers {_answer(error)}: wait a little and {again}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{archive} answers otherwise than isic-cli expects: {error!r}") from error
    except (RequestException, RetryError) as error:
        raise SourceError(
            f"{archive} cannot be reached ({type(error.__cause__ or error).__name__}): check the network, and"
            f" HTTPS_PROXY where there is a proxy, and {again}"
        ) from error
    except OSError as error:
        raise SourceError(f"{out}: cannot be written: {error.strerror or error}; {again}") from error


def _answer(error: "HTTPError") -> str:
    answer = error.response
    return str(error) if answer is None else f"{answer.status_code} {answer.reason}"
