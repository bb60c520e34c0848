"""Whatever is asked, the server answers as its OpenAPI document says: schemathesis looks for exceptions."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx

Start = Callable[..., httpx.Client]


def test_no_request_gets_an_answer_that_is_not_documented(start: Start, tmp_path: Path) -> None:
    base = start(token="secret").base_url  # noqa: S106 (of a server on loopback)
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "run", f"{base}/openapi.json"),
            *("--header", "Authorization: Bearer secret", "--checks", "all"),
            # a number in a file's place is, in a form, a file of that number's digits
            *("--exclude-checks", "negative_data_rejection"),
            *("--max-examples", "50", "--seed", "1", "--generation-database", "none"),
        ],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
