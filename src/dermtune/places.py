"""Folders and buckets that fsspec reaches, and one line for people where one does not answer."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from dermtune_bundle.errors import DermtuneError

# By default a bucket that does not answer is given up after 25 minutes. s3fs tries five times, so that these
# make it 75 seconds; botocore's own attempts would multiply them.
_S3 = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 15, "retries": {"total_max_attempts": 1}}}
_LOGGER = logging.getLogger(__name__)
_AFTER_HOST = re.compile(r"(https?://[^/\s\"]+)/[^\s\"]*")


def open_place(url: str, failure: type[DermtuneError]) -> tuple[Any, str]:
    """Give the file system behind a folder or a URL such as s3://bucket/folder, and the path there.

    What others write meanwhile is seen: listings are not cached, nor is the file system.

    Raises:
        DermtuneError: as `failure`: fsspec knows no such place, or lacks a package for it.
    """
    settings = _S3 if get_protocol(url) in {"s3", "s3a"} else {}
    try:
        files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **settings)
    except (ValueError, ImportError) as error:
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
        _LOGGER.debug("%s", url, exc_info=error)
        reason = _reason(error)
        raise failure(f"{url}: cannot be used: {reason}") from OSError(reason)


def _reason(error: Exception) -> str:
    """What went wrong, without a file's name: in an inbox it may be a patient's."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _AFTER_HOST.sub(r"\1", " ".join(text.split()))
