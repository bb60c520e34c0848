"""A registry of bundles: immutable versions, and a history of promotions whose last line names the champion.

A promotion is one file, made under the next number: who makes it first has promoted, and no other file says
who the champion is, so that neither a kill nor a second writer can leave one half told.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from dermtune.errors import RegistryError
from dermtune.places import open_place, using
from dermtune_bundle.bundle import Bundle, pack_bundle
from dermtune_bundle.files import atomic_path

_NUMBERED = re.compile(r"\d{8}\.json")
_VERSION = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Promotion:
    """A line of the history."""

    number: int
    """From 1, without gaps."""
    version: str
    """The bundle that is champion from then on."""
    replaces: str | None
    """The champion before it."""
    at: str
    """UTC, ISO 8601."""
    reason: str


class Registry:
    """Bundles in a folder, or in a bucket that fsspec reaches (s3://, gs://, abfs://)."""

    def __init__(self, url: str) -> None:
        """Open a registry; it is made by the first bundle that is added.

        Raises:
            RegistryError: fsspec knows no such place, or lacks a package for it.
        """
        self._files, root = open_place(url, RegistryError)
        self._url, self._root = url, PurePosixPath(root)

    def add(self, bundle: Path, *, beside: Mapping[str, bytes] | None = None) -> str:
        """Keep a copy of a bundle, and give its version; one that is there already stays as it is.

        Args:
            bundle: a folder or a .zip.
            beside: by name, what else is to be known of it here and does not leave with it.

        Raises:
            BundleError: the bundle is damaged.
        """
        version = Bundle.open(bundle).version
        for name, content in (beside or {}).items():  # before the bundle, which is then never without it
            self._create(self._beside(version, name), content)
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder, "bundle.zip")
            pack_bundle(bundle, packed)
            self._create(self._bundle(version), packed.read_bytes())
        return version

    def versions(self) -> list[str]:
        """Versions of the bundles that are kept."""
        names = self._names("bundles")
        return [name.removesuffix(".zip") for name in names if _VERSION.fullmatch(name.removesuffix(".zip"))]

    def fetch(self, version: str, out: Path) -> Path:
        """Copy a bundle here, as one .zip, and check it.

        Args:
            version: 64 digits.
            out: the file to write.

        Raises:
            RegistryError: there is no such version, or what is kept under its name is another.
            BundleError: the copy is damaged.
        """
        self._require(version)
        out.parent.mkdir(parents=True, exist_ok=True)
        with using(self._url, RegistryError):
            self._files.get_file(str(self._bundle(version)), str(out))
        found = Bundle.open(out).version
        if found != version:
            raise RegistryError(f"{self._bundle(version)}: holds version {found}; it was exchanged")
        return out

    def beside(self, version: str, name: str) -> bytes | None:
        """What was kept beside a bundle under a name; None: nothing."""
        with using(self._url, RegistryError):
            try:
                content: bytes = self._files.cat_file(str(self._beside(version, name)))
            except FileNotFoundError:
                return None
            return content

    def history(self) -> list[Promotion]:
        """Every promotion, the first first.

        Raises:
            RegistryError: a file of the history is damaged or missing.
        """
        found = []
        for number, (path, values) in enumerate(self._numbered("history"), start=1):
            try:
                promotion = Promotion(**values)
            except TypeError as error:
                raise RegistryError(f"{path}: damaged: {error}") from error
            if promotion.number != number or not _VERSION.fullmatch(promotion.version):
                raise RegistryError(
                    f"{path}: not promotion {number}; a file of the history is missing or changed"
                )
            found.append(promotion)
        return found

    def champion(self) -> str | None:
        """Version of the bundle in use; None: none was promoted yet."""
        history = self.history()
        return history[-1].version if history else None

    def require_champion(self) -> str:
        """Version of the bundle in use.

        Raises:
            RegistryError: none was promoted yet.
        """
        if (version := self.champion()) is None:
            raise RegistryError(f"{self._url}: has no champion; `dermtune registry promote` makes one")
        return version

    def find(self, named: str) -> str:
        """The version that `champion` or the first digits of one stand for.

        Raises:
            RegistryError: none is so called, or several are.
        """
        if named == "champion":
            found = [version] if (version := self.champion()) else []
        else:
            found = [version for version in self.versions() if version.startswith(named)]
        if len(found) != 1:
            raise RegistryError(f"{self._url}: {named!r} names {len(found)} bundles, not one")
        return found[0]

    def promote(self, version: str, *, over: str | None, reason: str) -> Promotion:
        """Make a bundle the champion, if the champion is still the one that it was compared with.

        Args:
            version: of a bundle that is kept.
            over: the champion's version; None: there is none.
            reason: why, for people.

        Raises:
            RegistryError: no such bundle is kept, it is champion already, or another was promoted meanwhile.
        """
        self._require(version)
        if version == over:
            raise RegistryError(f"{self._url}: {version[:12]} is the champion already")
        history = self.history()
        now = history[-1].version if history else None
        number = len(history) + 1
        promotion = Promotion(number, version, over, datetime.now(UTC).isoformat(timespec="seconds"), reason)
        content = json.dumps(asdict(promotion), indent=2).encode() + b"\n"
        path = self._root / "history" / f"{number:08d}.json"
        if now != over or not self._create(path, content):
            raise RegistryError(
                f"{self._url}: the champion is no longer {over and over[:12]}; compare with the present one"
            )
        return promotion

    def note(self, comparison: Mapping[str, object]) -> int:
        """Keep what a comparison with the champion found, and give its number, from 1."""
        number = len(self._names("comparisons"))
        is_made = False
        while not is_made:
            number += 1
            content = json.dumps({"number": number, **comparison}, indent=2).encode() + b"\n"
            is_made = self._create(self._root / "comparisons" / f"{number:08d}.json", content)
        return number

    def comparisons(self) -> list[dict[str, Any]]:
        """Every comparison with a champion, the first first."""
        return [values for _, values in self._numbered("comparisons")]

    def rollback(self, *, reason: str) -> Promotion:
        """Make the champion before this one champion again, by a promotion; twice goes back by two.

        Raises:
            RegistryError: there was none before it, or another was promoted meanwhile.
        """
        stack: list[str] = []
        for promotion in self.history():
            went_back = promotion.version in stack
            stack = stack[: stack.index(promotion.version)] if went_back else stack
            stack.append(promotion.version)
        if len(stack) < 2:  # noqa: PLR2004 - the champion and one before it
            raise RegistryError(f"{self._url}: no champion to go back to")
        return self.promote(stack[-2], over=stack[-1], reason=reason)

    def _bundle(self, version: str) -> PurePosixPath:
        return self._root / "bundles" / f"{version}.zip"

    def _beside(self, version: str, name: str) -> PurePosixPath:
        return self._root / "beside" / version / name

    def _require(self, version: str) -> None:
        with using(self._url, RegistryError):
            if not _VERSION.fullmatch(version) or not self._files.exists(str(self._bundle(version))):
                raise RegistryError(f"{self._url}: keeps no bundle {version!r}")

    def _names(self, folder: str) -> list[str]:
        """Files of a folder, in order; whatever a kill left behind is none of them."""
        with using(self._url, RegistryError):
            try:
                found = self._files.ls(str(self._root / folder), detail=False)
            except FileNotFoundError:
                return []
        names = sorted(PurePosixPath(path).name for path in found)
        return [name for name in names if _NUMBERED.fullmatch(name) or name.endswith(".zip")]

    def _numbered(self, folder: str) -> Iterator[tuple[PurePosixPath, dict[str, Any]]]:
        """What the numbered files of a folder hold, in order."""
        for name in self._names(folder):
            path = self._root / folder / name
            with using(self._url, RegistryError):
                content = self._files.cat_file(str(path))
            try:
                yield path, json.loads(content)
            except ValueError as error:
                raise RegistryError(f"{path}: damaged: {error}") from error

    def _create(self, path: PurePosixPath, content: bytes) -> bool:
        """Make a file, whole or not at all; False: there is one of that name already."""
        with using(self._url, RegistryError):
            try:
                if isinstance(self._files, LocalFileSystem):
                    with atomic_path(Path(path), new=True) as temporary:
                        temporary.write_bytes(content)
                else:
                    self._files.pipe_file(str(path), content, mode="create")
            except OSError:
                if self._files.exists(str(path)):  # not every store's refusal arrives as FileExistsError
                    return False
                raise
            return True
