from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from dermtune import fingerprint
from dermtune.fingerprint import code_fingerprint, package_fingerprint, versions


def test_code_is_named_by_its_source() -> None:
    assert code_fingerprint("dermtune.trunk") != code_fingerprint("dermtune.backbone")
    with pytest.raises(ValueError, match=r"no module dermtune\.nothing"):
        code_fingerprint("dermtune.nothing")


def test_the_package_is_named_by_all_of_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dermtune", "dermtune_bundle"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(fingerprint, "__file__", str(tmp_path / "dermtune" / "fingerprint.py"))
    found = {package_fingerprint()}
    for name in ("dermtune/a.py", "dermtune_bundle/a.py"):
        for content in ("1", "2"):
            (tmp_path / name).write_text(content)
            found.add(package_fingerprint())
    assert len(found) == 5


def test_libraries_are_named_by_their_version() -> None:
    assert versions("numpy") == {"numpy": np.__version__}
    with pytest.raises(PackageNotFoundError):
        versions("no-such-package")
