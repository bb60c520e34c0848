"""Each image of an inbox is answered once, whatever happens in between."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from dermtune.errors import SourceError
from dermtune.scoring import EMBEDDING, Scored, score_inbox
from dermtune_bundle.bundle import Bundle


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    (folder / "deep").mkdir(parents=True)
    Image.new("RGB", (40, 56), "red").save(folder / "red.png")
    Image.new("RGB", (56, 40), "blue").save(folder / "deep/blue.png")
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("x")
    (folder / "link.png").symlink_to(folder / "red.png")
    return folder


def rows(path: Path) -> list[tuple[str, ...]]:
    with sqlite3.connect(path) as scores:
        return scores.execute("SELECT path, answer, error FROM scores ORDER BY path").fetchall()


def test_each_image_is_answered_once_and_a_failure_is_set_aside(
    tiny_bundle: Path, inbox: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.db"
    assert score_inbox(tiny_bundle, str(inbox), out) == Scored(answered=2, failed=1, known=0)
    assert score_inbox(tiny_bundle, str(inbox), out) == Scored(answered=0, failed=0, known=3)
    found = rows(out)
    assert [path for path, _, _ in found] == ["bad.png", "deep/blue.png", "red.png"]
    assert found[0][2].startswith("bad.png: not a JPEG")
    assert json.loads(found[2][1])["predicted"] == "mel"
    assert json.loads(found[2][1])["bundle"]["version"] == Bundle.open(tiny_bundle).version


def test_what_drift_needs_is_kept_of_an_image_that_is_answered(
    tiny_bundle: Path, inbox: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores.db"
    score_inbox(tiny_bundle, str(inbox), out)
    with sqlite3.connect(out) as scores:
        query = "SELECT sharpness, brightness, side, embedding FROM scores ORDER BY path"
        bad, blue, red = scores.execute(query).fetchall()
    assert bad == (None, None, None, None)
    assert blue[:3] == (pytest.approx(0), pytest.approx(85), 40)
    assert np.frombuffer(red[3], EMBEDDING).tolist() == [255, 0, 0]


def test_copies_are_known_and_changed_files_are_new(tiny_bundle: Path, inbox: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.db"
    score_inbox(tiny_bundle, str(inbox), out)
    shutil.copy(inbox / "red.png", inbox / "again.png")
    Image.new("RGB", (40, 56), "green").save(inbox / "red.png")
    assert score_inbox(tiny_bundle, str(inbox), out) == Scored(answered=1, failed=0, known=3)


def test_a_missing_inbox_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="absent: no such inbox"):
        score_inbox(tiny_bundle, str(tmp_path / "absent"), tmp_path / "scores.db")


def test_an_inbox_in_a_bucket_is_answered_once(
    tiny_bundle: Path, inbox: Path, s3: str, tmp_path: Path
) -> None:
    out, files = tmp_path / "scores.db", fsspec.filesystem("s3")
    assert score_inbox(tiny_bundle, f"{s3}/inbox", out) == Scored(answered=0, failed=0, known=0)
    files.put(f"{inbox}/", f"{s3}/inbox/", recursive=True)  # what the link leads to is put as a copy
    files.put_file(str(inbox / "red.png"), f"{s3}/inbox-of-others/red.png")
    assert score_inbox(tiny_bundle, f"{s3}/inbox", out) == Scored(answered=2, failed=1, known=1)
    assert score_inbox(tiny_bundle, f"{s3}/inbox", out) == Scored(answered=0, failed=0, known=4)
    Image.new("RGB", (40, 56), "green").save(inbox / "green.png")
    files.put_file(str(inbox / "green.png"), f"{s3}/inbox/deep/red.png")
    assert score_inbox(tiny_bundle, f"{s3}/inbox", out) == Scored(answered=1, failed=0, known=4)
    assert [path for path, _, _ in rows(out)] == ["bad.png", "deep/blue.png", "deep/red.png", "link.png"]


def test_a_bucket_that_cannot_be_reached_is_told_and_names_no_image(
    tiny_bundle: Path, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.db"
    with pytest.raises(SourceError, match=r"s3://there-is-none: cannot be used: .*bucket does not exist"):
        score_inbox(tiny_bundle, "s3://there-is-none", out)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match="Could not connect") as told:
        score_inbox(tiny_bundle, f"{s3}/inbox", out)
    assert isinstance(told.value.__cause__, OSError), "the flow tries again"


SCORE = """
import sys
from pathlib import Path
from dermtune.scoring import score_inbox

print("begun", flush=True)
score_inbox(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
"""


def test_a_run_that_is_killed_goes_on_and_answers_none_twice(tiny_bundle: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "inbox", tmp_path / "scores.db"
    folder.mkdir()
    for grey in range(150):
        Image.new("L", (400, 400), grey).save(folder / f"{grey:03}.png")
    for seconds in (0.1, 0.3):
        run = subprocess.Popen(
            [sys.executable, "-c", SCORE, tiny_bundle, folder, out], stdout=subprocess.PIPE, text=True
        )
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        time.sleep(seconds)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    before = len(rows(out)) if out.exists() else 0
    done = score_inbox(tiny_bundle, str(folder), out)
    assert done.known == before
    assert done.answered == 150 - before
    assert len(rows(out)) == 150
