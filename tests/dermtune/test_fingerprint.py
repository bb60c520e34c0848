from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from dermtune.fingerprint import code_fingerprint, versions


def test_code_is_named_by_its_source() -> None:
    assert code_fingerprint("dermtune.trunk") != code_fingerprint("dermtune.backbone")
    with pytest.raises(ValueError, match=r"no module dermtune\.nothing"):
        code_fingerprint("dermtune.nothing")


def test_libraries_are_named_by_their_version() -> None:
    assert versions("numpy") == {"numpy": np.__version__}
    with pytest.raises(PackageNotFoundError):
        versions("no-such-package")
