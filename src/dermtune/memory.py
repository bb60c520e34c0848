"""What the last ingest found out about files, so that only new and changed ones are looked at again.

A file counts as the same while its place, its size and the time of its last change are, as DVC takes it. What
is remembered changes no result: it is what would be found again. The notes are no output, for times differ
between machines.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from dermtune.appearance import MASKS
from dermtune.duplicates import Pair, Prints, find_duplicates
from dermtune.errors import DataError
from dermtune.fingerprint import code_fingerprint, file_sha256, versions
from dermtune.leakage import PRINTS
from dermtune.quality import CheckedImage
from dermtune.shards import open_array
from dermtune.sources import SourceImage
from dermtune.sources.files import file_key
from dermtune.table import read_table
from dermtune_bundle.decode import HAS_HEIC
from dermtune_bundle.files import atomic_path

_MODULES = (
    "quality",
    "privacy",
    "burned_text",
    "duplicates",
    "appearance",
    "memory",
    "shards",
    "places",
    "sources.files",
)
_FACTS = (
    "sha256", "width", "height", "red", "green", "blue", "has_text", "has_mask", "shard", "offset", "size",
)  # fmt: skip
_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "pydicom", "scipy")


class Memory:
    """Facts and bytes of images that an earlier ingest kept in a folder."""

    def __init__(self, rows: Mapping[str, int], folder: Path, pairs: Sequence[Sequence[Any]] = ()) -> None:
        """Open what lies in the folder, which may be written anew meanwhile.

        Args:
            rows: by a file's key, its row in the folder's image table.
            folder: what ingest wrote.
            pairs: of these rows, that are copies, with their correlation.
        """
        self._rows = rows
        self._pairs = pairs
        self._code = _code()
        self._shards: dict[str, BinaryIO] = {}
        if rows:
            table = read_table(folder / "images.parquet")
            self._columns = {name: table[name].tolist() for name in _FACTS}
            self._prints = open_array(folder / PRINTS, rows=len(table))
            self._masks = open_array(folder / MASKS, rows=len(table))
            for shard in table["shard"].unique():
                self._shards[shard] = (folder / shard).open("rb")

    @classmethod
    def load(cls, notes: Path, folder: Path) -> Self:
        """Read the notes, and remove them: they hold again once the folder is written.

        Where they are missing, damaged, of other code or of another folder, nothing is remembered.
        """
        try:
            noted = json.loads(notes.read_text(encoding="utf-8"))
            notes.unlink()
            is_of_this = noted["code"] == _code() and noted["files"] == state_of(folder)
            return cls(dict(noted["rows"]), folder, list(noted["pairs"])) if is_of_this else cls({}, folder)
        except (OSError, ValueError, TypeError, KeyError, DataError):
            return cls({}, folder)

    def find(self, image: SourceImage) -> str | None:
        """The key of an image's file, if it is one that was looked at."""
        key = file_key(image) if self._rows else None
        return key if key in self._rows else None

    def recall(self, key: str) -> CheckedImage:
        """What `check_image` would find again, of a file that is known."""
        place = self._rows[key]
        row = {name: values[place] for name, values in self._columns.items()}
        shard = self._shards[row["shard"]]
        shard.seek(row["offset"])
        data = shard.read(row["size"])
        return CheckedImage(
            data=data,
            suffix=".jpg" if data.startswith(b"\xff\xd8") else ".png",
            sha256=row["sha256"],
            print=np.array(self._prints[place]),
            width=row["width"],
            height=row["height"],
            colour=(row["red"], row["green"], row["blue"]),
            has_text=row["has_text"],
            mask=np.array(self._masks[place]) if row["has_mask"] else None,
            file=key,
        )

    def find_duplicates(self, prints: Prints, keys: Sequence[str | None]) -> list[Pair]:
        """`duplicates.find_duplicates`, but for pairs of known images, which are remembered.

        Args:
            prints: (N, SIDE, SIDE).
            keys: N, as of `file_key`.
        """
        is_known = np.array([key in self._rows for key in keys], bool)
        (known,), (new,) = np.nonzero(is_known), np.nonzero(~is_known)
        now = {self._rows[str(keys[row])]: row for row in known.tolist()}
        found = [(now[one], now[two], correlation) for one, two, correlation in self._pairs
                 if one in now and two in now]  # fmt: skip
        among = find_duplicates(prints[new])
        across = find_duplicates(prints[new], prints[known]) if len(known) else []
        found += [(int(new[one]), int(new[two]), correlation) for one, two, correlation in among]
        found += [(int(new[one]), int(known[two]), correlation) for one, two, correlation in across]
        return sorted(Pair(min(one, two), max(one, two), correlation) for one, two, correlation in found)

    def remember(
        self, notes: Path, state: Mapping[str, str], keys: Sequence[str | None], pairs: Sequence[Pair]
    ) -> None:
        """Note which files the image table of a folder was made of, by the code of this memory.

        Args:
            notes: the file to write.
            state: of the folder that ingest wrote, as of `state_of`.
            keys: of the table's images, in its order, as of `file_key`.
            pairs: those that are copies.
        """
        rows = {key: row for row, key in enumerate(keys) if key is not None}
        noted = {"code": self._code, "files": dict(state), "rows": rows, "pairs": pairs}
        with atomic_path(notes) as temporary:
            temporary.write_text(json.dumps(noted), encoding="utf-8")

    def close(self) -> None:
        """Let go of the files."""
        for shard in self._shards.values():
            shard.close()


def state_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that is remembered from."""
    arrays = (folder / name for name in ("images.parquet", PRINTS, MASKS))
    return {path.name: file_sha256(path) for path in [*arrays, *sorted(folder.glob("*.tar"))]}


def _code() -> str:
    modules = [f"dermtune.{name}" for name in _MODULES] + ["dermtune_bundle.decode", "dermtune_bundle.dicom"]
    heic = ["pillow-heif"] if HAS_HEIC else []
    return f"{code_fingerprint(*modules)} {versions(*_PACKAGES, *heic)}"
