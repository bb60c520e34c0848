"""Places that fail: one line, soon, without the name of a file."""

import socket
import time
from pathlib import Path

import pytest

from dermtune import places
from dermtune.errors import RegistryError, SourceError
from dermtune.places import open_place, using


def test_a_place_of_an_unknown_kind_is_named() -> None:
    with pytest.raises(SourceError, match=r"nowhere://x: Protocol not known"):
        open_place("nowhere://x", SourceError)


def test_what_a_disk_or_a_client_raises_becomes_one_line_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as told, using("inbox", SourceError):
        (tmp_path / "smith.png").read_bytes()
    assert str(told.value) == "inbox: cannot be used: No such file or directory"
    assert isinstance(told.value.__cause__, OSError)
    assert "smith" not in str(told.value.__cause__)
    with pytest.raises(SourceError) as told, using("s3://inbox", SourceError):
        raise ValueError('no answer\nfrom "http://127.0.0.1:9000/inbox/smith.png?x=1", again')
    assert str(told.value) == 's3://inbox: cannot be used: no answer from "http://127.0.0.1:9000", again'
    assert isinstance(told.value.__cause__, OSError)


def test_an_error_of_ours_stays_as_it_is() -> None:
    with pytest.raises(RegistryError, match="exchanged"), using("registry", SourceError):
        raise RegistryError("exchanged")


def test_what_others_write_meanwhile_is_seen(s3: str) -> None:
    (here, root), (there, _) = open_place(s3, SourceError), open_place(s3, SourceError)
    here.pipe_file(f"{root}/folder/a", b"")
    assert not here.exists(f"{root}/folder/b")
    assert len(here.ls(f"{root}/folder")) == 1
    there.pipe_file(f"{root}/folder/b", b"")
    assert here.exists(f"{root}/folder/b")
    assert len(here.ls(f"{root}/folder")) == 2


def test_a_server_that_takes_a_call_and_never_answers_is_given_up(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(places._S3["config_kwargs"], "read_timeout", 0.2)  # of 15 s
    with socket.create_server(("127.0.0.1", 0), backlog=50) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        files, root = open_place(s3, SourceError)
        start = time.monotonic()
        with pytest.raises(SourceError, match="Read timeout"), using(s3, SourceError):
            files.ls(root)
    assert time.monotonic() - start < 20, "five attempts of 0.2 s, and the pauses between them"
