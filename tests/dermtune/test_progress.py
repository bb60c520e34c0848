import os
import pty
import re
import subprocess
import sys

import pytest

from dermtune import progress as module
from dermtune.progress import progress, read_progress

WORK = """
import time
from dermtune.progress import progress
for _ in progress(range(50), "embed train-00", 495, step=10):
    time.sleep(0.02)
"""


def test_items_pass_through_and_nothing_is_drawn_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), "count", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_how_many_how_fast_and_how_long_still() -> None:
    terminal, its_end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, "-c", WORK], stderr=its_end, env=environment) as process:
        os.close(its_end)
        drawn = b""
        while True:
            try:
                drawn += os.read(terminal, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(terminal)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    assert re.search(r"embed train-00 .*\d+/495 +[1-9]\d* images/s 0:00:0", text)
    assert max(int(done) for done in re.findall(r"(\d+)/495", text)) <= 495


def test_off_a_terminal_a_line_now_and_then_can_be_read_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS", -1)
    list(progress(range(3), "embed train-00", 25, step=10))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["embed train-00: 10 of 25", "embed train-00: 20 of 25", "embed train-00: 25 of 25"]
    assert [read_progress(line) for line in lines] == [
        ("embed train-00", 0.4),
        ("embed train-00", 0.8),
        ("embed train-00", 1.0),
    ]
    assert read_progress("error: 3 of 4 images") is None
