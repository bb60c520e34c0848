"""What a study has measured so far, so that one that was broken off goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dermtune.fingerprint import package_fingerprint
from dermtune_bundle.files import atomic_path


class Kept:
    """Measurements by name, in a file that is written anew after each."""

    def __init__(self, path: Path, *, made_from: object) -> None:
        """Go on from a file.

        Args:
            path: where there is none, or one of something else, all is measured.
            made_from: the data and choices that decide what is measured, as JSON knows them; beside the code.
        """
        self.made_from = json.dumps([made_from, package_fingerprint()], sort_keys=True)
        self._path = path
        self._found: dict[str, Any] = {}
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["made_from"] == self.made_from:
                self._found = dict(kept["found"])
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def get(self, name: str, measure: Callable[[], Any]) -> Any:  # noqa: ANN401 (whatever JSON knows)
        """What was measured before, or else is now."""
        if name not in self._found:
            self._found[name] = measure()
            with atomic_path(self._path) as temporary:
                text = json.dumps({"made_from": self.made_from, "found": self._found})
                temporary.write_text(text, encoding="utf-8")
        return self._found[name]

    def forget(self) -> None:
        """Remove the file: the study is written."""
        self._path.unlink(missing_ok=True)
