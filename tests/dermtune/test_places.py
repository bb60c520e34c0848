"""Places that fail: one line, soon, without the name of a file."""

import io
import pickle
import socket
import time
import traceback
import zipfile
from pathlib import Path

import pytest

from dermtune import places
from dermtune.errors import RegistryError, SourceError
from dermtune.places import (
    Place,
    StoredFile,
    open_place,
    open_stored,
    read_stored,
    root_of,
    stored_files,
    using,
)


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


def test_no_error_tells_a_password() -> None:
    error = SourceError("sftp://me:secret@host/in: no such folder")
    assert str(error) == "sftp://…@host/in: no such folder"
    assert "secret" not in "".join(traceback.format_exception(error))


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


def test_a_url_keeps_its_slashes_and_a_path_is_one() -> None:
    assert str(root_of("s3://clinic/images/") / "part/a.jpg") == "s3://clinic/images/part/a.jpg"
    assert root_of("data/raw") == Path("data/raw")
    assert root_of("file:///data/raw") == Path("/data/raw")
    assert root_of("s3://clinic") == Place("s3://clinic")


def test_files_are_listed_by_name_and_read_where_they_are_sent(s3: str) -> None:
    store, root = open_place(f"{s3}/in", SourceError)
    for name in ("a.jpg", "b/c.jpg", "b/", ""):
        store.pipe_file(f"{root}/{name}", name.encode())
    listed = stored_files(f"{s3}/in", SourceError)
    assert [*listed] == ["a.jpg", "b/c.jpg"]
    sent: StoredFile = pickle.loads(pickle.dumps(listed["b/c.jpg"]))  # noqa: S301 - ours
    assert (sent.name, sent.size, read_stored(sent, SourceError)) == ("c.jpg", 7, b"b/c.jpg")
    assert sent.stamp
    assert [*stored_files(f"{s3}/in/a.jpg", SourceError)] == [""]
    assert stored_files(f"{s3}/nowhere", SourceError) == {}
    store.pipe_file(f"{root}/a.jpg", b"other")
    assert stored_files(f"{s3}/in", SourceError)["a.jpg"].stamp != listed["a.jpg"].stamp
    store.rm_file(f"{root}/a.jpg")
    with pytest.raises(SourceError, match="is gone or was changed; run it again") as told:
        read_stored(listed["a.jpg"], SourceError)
    assert "a.jpg" not in str(told.value)


def test_a_file_is_read_here_and_there_and_a_store_that_fails_is_no_damage(s3: str) -> None:
    store, root = open_place(s3, SourceError)
    content = bytes(range(256)) * (3 << 12)  # three blocks
    store.pipe_file(f"{root}/a", content)
    with open_stored(stored_files(s3, SourceError)["a"], SourceError) as file:
        for at in (len(content) - 10, 5, 2_000_000):
            file.seek(at)
            assert file.read(300) == content[at : at + 300]
        assert file.seek(-4, io.SEEK_END) == file.tell() == len(content) - 4
        assert file.read() == content[-4:]
        with pytest.raises(OSError, match="before the file's start"):
            file.seek(-1)
    for in_order in (False, True):
        with open_stored(stored_files(s3, SourceError)["a"], SourceError, in_order=in_order) as file:
            store.pipe_file(f"{root}/a", content[::-1])
            # of an OSError, ZipFile would say that the file is none
            with pytest.raises(SourceError, match="is gone or was changed"):
                zipfile.ZipFile(file)
            store.pipe_file(f"{root}/a", content)
