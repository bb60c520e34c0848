"""Names of image files: what a table may call them, the ids that they give, and words for splits."""

import errno
import hashlib
import posixpath  # pathlib would take most of the time of a large listing
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from dermtune.sources.files import SourceFiles
from dermtune.table import Split
from dermtune_bundle.decode import SUFFIXES

SPLIT_WORDS: Mapping[str, Split] = MappingProxyType(
    {
        "train": "train",
        "training": "train",
        "val": "val",
        "valid": "val",
        "validation": "val",
        "test": "test",
        "testing": "test",
        "holdout": "test",
    }
)


_LONGEST = 100  # characters of an id, as ingest takes it


class NamedFiles:
    """Finds files by what a table calls them: their path or its end, with or without the suffix.

    Case counts; backslashes are read as slashes. What leads elsewhere, such as an absolute path or `..`, is
    the name of no file.
    """

    def __init__(self, files: SourceFiles, names: Iterable[str]) -> None:
        """Of the files of a source, those that may be meant."""
        self._files = files
        whole = {_slashes(name): name for name in names}
        ends: dict[str, str | None] = {}
        for path, name in whole.items():
            for end in _ends(path):
                ends[end] = None if end in ends else name
        self._names = {**ends, **whole}

    def find(self, called: str) -> str | None:
        """The file's name among the source's; None: there is none, or there are several."""
        return self._names.get(_slashes(called))

    def content(self, called: str) -> Callable[[], bytes]:
        """What reads the file, picklable, and raises OSError where there is none, or there are several."""
        if self._names.get(_slashes(called), "") is None:
            return _several
        return self._files.content(self.find(called))


def image_ids(names: Sequence[str]) -> dict[str, str]:
    """An id for each file: its name without folders and suffix where no other has the same, else its path."""
    stems = {name: plain_id(posixpath.splitext(posixpath.basename(name))[0]) for name in names}
    counts = Counter(stem.casefold() for stem in stems.values())
    ids = {name: stem if counts[stem.casefold()] == 1 else plain_id(name) for name, stem in stems.items()}
    uses = Counter(one.casefold() for one in ids.values())
    return {
        name: one if uses[one.casefold()] == 1 and len(one) <= _LONGEST else _short(one, name)
        for name, one in ids.items()
    }


def _short(image_id: str, name: str) -> str:
    """Told from others by a hash of the whole name."""
    return f"{image_id[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def plain_id(name: str) -> str:
    """A name as an id that ingest takes: whatever is no letter, digit, `.`, `-` or `_` becomes `-`."""
    return re.sub(r"[^\w.-]+", "-", name)


def _slashes(path: str) -> str:
    """One spelling of a path: macOS keeps accents apart from their letters, Windows has backslashes."""
    return posixpath.normpath(unicodedata.normalize("NFC", path).replace("\\", "/"))


def _ends(path: str) -> Iterable[str]:
    suffix = posixpath.splitext(path)[1]
    parts = path.split("/")
    for start in range(len(parts)):
        end = "/".join(parts[start:])
        yield end
        if suffix.lower() in SUFFIXES:
            yield end.removesuffix(suffix)


def _several() -> bytes:
    raise OSError(errno.EINVAL, "several files are called so; give its path, or keep one")
