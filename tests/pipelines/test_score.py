import shutil
import sqlite3
from pathlib import Path

import pytest
from PIL import Image
from pipelines.score import score

from dermtune.registry import Registry

pytestmark = pytest.mark.usefixtures("server")


def test_new_images_go_through_the_champion_once(tiny_bundle: Path, tmp_path: Path) -> None:
    registry, inbox, out = str(tmp_path / "registry"), tmp_path / "inbox", tmp_path / "scores.db"
    inbox.mkdir()
    Image.new("RGB", (40, 56), "red").save(inbox / "red.png")
    (inbox / "bad.png").write_bytes(b"no image")
    bundles = Registry(registry)
    version = bundles.add(tiny_bundle)
    bundles.promote(version, over=None, reason="first")
    said = [score(registry, str(inbox), out, return_state=True).message for _ in range(2)]
    assert said == ["1 answered, 1 failed, 0 known before", "0 answered, 0 failed, 2 known before"]
    with sqlite3.connect(out) as scores:
        assert {bundle for (bundle,) in scores.execute("SELECT bundle FROM scores")} == {version}


def test_what_is_missing_is_said_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    registry = str(tmp_path / "registry")
    state = score(registry, str(tmp_path), tmp_path / "scores.db", return_state=True)
    assert state.is_failed()
    assert state.message == f"{registry}: has no champion; `dermtune registry promote` makes one"
    bundles = Registry(registry)
    bundles.promote(bundles.add(tiny_bundle), over=None, reason="first")
    state = score(registry, str(tmp_path / "absent"), tmp_path / "scores.db", return_state=True)
    assert state.message == f"{tmp_path / 'absent'}: no such inbox"
    shutil.rmtree(tmp_path / "registry" / "bundles")
    state = score(registry, str(tmp_path), tmp_path / "scores.db", return_state=True)
    assert "keeps no bundle" in str(state.message)
