"""Folders and bundles in a bucket, as the command line reads and writes them."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.request import Request, urlopen

import fsspec
import pytest
from fsspec.registry import _registry as loaded_stores
from PIL import Image
from ruamel.yaml import YAML
from s3fs import S3FileSystem

from dermtune import transport
from dermtune.cli import main
from dermtune.errors import DataError
from dermtune.params import Params
from dermtune.transport import fetched, sent
from dermtune_bundle import Bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where copies are kept meanwhile, of which nothing is to stay."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [*folder.glob("dermtune-*")] == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dermtune", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


def write(folder: Path, **files: bytes) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@cache  # to connect takes longer than to read
def store() -> S3FileSystem:
    return fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False)


@contextmanager
def keys_checked(server: str) -> Iterator[None]:
    """The server knows no key, and so refuses ours."""

    def take(calls: bytes) -> None:
        request = Request(f"{server}/moto-api/reset-auth", calls, {"Content-Type": "text/plain"})  # noqa: S310 - on loopback
        urlopen(request).close()  # noqa: S310 - as above

    take(b"0")
    try:
        yield
    finally:
        take(b"inf")


def send_and_fail(url: str) -> None:
    with sent(url) as folder:
        write(folder, other=b"")
        raise DataError(f"{folder / 'table'}: No such file")


def send(url: str, **files: bytes) -> None:
    with sent(url) as folder:
        write(folder, **files)


def fetch(url: str, **limits: int) -> dict[str, bytes]:
    with fetched(url, **limits) as folder:
        return read(folder)


def test_a_folder_comes_back_as_it_was_sent_and_what_it_had_before_is_gone(s3: str) -> None:
    url = f"{s3}/work/ingest"
    send(url, **{"images-000.tar": b"0", "images-001.tar": b"1", "deep/er/table.csv": b"id\n", "empty": b""})
    send(f"{url}/", **{"images-000.tar": b"2", "empty": b""})
    store().pipe_file(f"{url}/of-others.txt", b"")
    assert fetch(url) == {"images-000.tar": b"2", "empty": b""}
    assert [path.rpartition("/")[2] for path in store().find(url)] == [
        "empty", "images-000.tar", "of-others.txt",
    ]  # fmt: skip


def test_what_was_left_half_way_is_not_taken_and_what_was_made_is_kept(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{s3}/embed"
    send(url, **{"activations.json": b"old", "val.npy": b"old"})
    put = S3FileSystem._put_file
    calls = []

    async def fail_at_the_second(self: S3FileSystem, *arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) > 1:
            raise ConnectionResetError("reset by peer")
        await put(self, *arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(S3FileSystem, "_put_file", fail_at_the_second)
        with pytest.raises(DataError, match=r"reset by peer; what was made is kept in (\S+)") as told:
            # a connection of its own, for one that there is has the whole method
            send(f"{url}/", **{"activations.json": b"new", "val.npy": b"new"})
    kept = Path(str(told.value).rpartition(" ")[2])
    assert read(kept) == {"activations.json": b"new", "val.npy": b"new"}
    shutil.rmtree(kept.parent)
    with pytest.raises(DataError, match="left half-way; run what wrote it again"):
        fetch(url)
    send(url, **{"activations.json": b"new", "val.npy": b"new"})
    assert fetch(url) == {"activations.json": b"new", "val.npy": b"new"}


def test_a_command_that_fails_sends_nothing(s3: str) -> None:
    with pytest.raises(DataError, match=f"{s3}/out/table: No such file"):
        send_and_fail(f"{s3}/out")
    assert store().find(s3) == []


def test_a_file_that_was_exchanged_or_is_gone_is_named(s3: str) -> None:
    send(f"{s3}/out", a=b"a", b=b"b")
    store().pipe_file(f"{s3}/out/a", b"A")
    with pytest.raises(DataError, match=f"{s3}/out: a is not what {s3}/out.dermtune.json says"):
        fetch(f"{s3}/out")
    store().rm_file(f"{s3}/out/a")
    with pytest.raises(DataError, match=f"{s3}/out: a is missing"):
        fetch(f"{s3}/out")
    for damaged in (b"{", b"[]", b'{"is_whole": true, "files": {"../a": "0"}}'):
        store().pipe_file(f"{s3}/out.dermtune.json", damaged)
        with pytest.raises(DataError, match=r"damaged|cannot be the name"):
            fetch(f"{s3}/out")


def test_a_folder_of_others_is_read_and_never_written(s3: str) -> None:
    store().pipe_file(f"{s3}/theirs/a/b.txt", b"b")
    store().pipe_file(f"{s3}/theirs/", b"")  # as consoles leave it
    assert fetch(f"{s3}/theirs") == {"a/b.txt": b"b"}
    assert fetch(s3) == {"theirs/a/b.txt": b"b"}
    for url in (f"{s3}/theirs", s3, f"{s3}/"):
        with pytest.raises(DataError, match=r"choose another folder|name a folder in it"):
            send(url, x=b"")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//b", "a/", "./a", "a\\b", "C:x"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="cannot be the name of a file here"):
        transport._safe("s3://bucket", name)


def test_a_url_that_ends_elsewhere_is_refused(s3: str) -> None:
    for take in (fetch, send):
        with pytest.raises(DataError, match="cannot be the name of a file here"):
            take(f"{s3}/out/..")


def test_of_torchruns_processes_the_first_one_sends(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")  # of something else
    send(f"{s3}/out", a=b"1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    send(f"{s3}/out", a=b"2")
    assert fetch(f"{s3}/out") == {"a": b"1"}


def test_nothing_is_written_outside_the_folder(s3: str, scratch: Path) -> None:
    store().pipe_file(f"{s3}/in/../../../x", b"x")
    with pytest.raises(DataError, match="cannot be the name of a file here"):
        fetch(f"{s3}/in")
    assert not [*scratch.parent.rglob("x")]


def test_too_much_is_refused_before_it_is_fetched(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    send(f"{s3}/out", a=b"a" * 10, b=b"b")
    assert len(fetch(f"{s3}/out", max_files=2, max_bytes=11)) == 2
    monkeypatch.setattr(transport, "open_stored", None)
    for limits in ({"max_files": 1}, {"max_bytes": 10}):
        with pytest.raises(DataError, match="more than can be meant"):
            fetch(f"{s3}/out", **limits)
    full = shutil.disk_usage("/")._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(DataError, match="set TMPDIR"):
        fetch(f"{s3}/out")


def test_stages_read_and_write_a_bucket_as_they_do_a_folder(  # noqa: PLR0917 (fixtures)
    run: Run, params: Params, augmented: Path, embedded: Path, s3: str, tmp_path: Path
) -> None:
    choices = tmp_path / "params.yaml"
    YAML().dump(params.model_dump(mode="json"), choices)
    store().put(str(augmented), f"{s3}/augment", recursive=True)
    embed, out = ("embed", "--params", choices, "--views"), f"{s3}/work/embed"
    code, _, told = run(*embed, f"{s3}/nowhere", "--out", out)
    assert (code, told) == (2, f"error: {s3}/nowhere: no such file or folder\n")
    store().pipe_file(f"{s3}/empty/of-others", b"")
    code, _, told = run(*embed, f"{s3}/empty", "--out", out)
    assert code == 2
    assert f"error: {s3}/empty/views.json: " in told
    assert not store().exists(out)
    code, _, told = run(*embed, f"{s3}/augment", "--out", out)
    assert code == 0, told
    assert fetch(out) == read(embedded)


def test_a_bundle_is_packed_to_a_bucket_and_used_from_there(
    run: Run, tiny_bundle: Path, s3: str, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 56), "red").save(tmp_path / "red.png")
    version = Bundle.open(tiny_bundle).version
    packed, folder = f"{s3}/released/bundle.zip", f"{s3}/released/bundle"
    assert run("pack", tiny_bundle, packed)[1].startswith(f"{packed}: version {version}\n")
    assert run("pack", packed, folder)[0] == 0
    for url in (packed, folder):
        assert f"version: {version}\n" in run("verify", url)[1]
        assert version in run("predict", url, tmp_path / "red.png", "--format", "jsonl")[1]
    registry = tmp_path / "registry"
    assert version in run("registry", "--registry", registry, "promote", packed, "--reason", "first")[1]
    code, out, _ = run("registry", "--registry", registry, "fetch", f"{s3}/champion.zip")
    assert (code, out) == (0, f"{s3}/champion.zip: version {version}\n")
    store().pipe_file(f"{folder}/model.onnx", b"exchanged")
    assert run("verify", folder)[2].startswith(f"error: {folder}: model.onnx is not what")
    store().rm_file(f"{folder}.dermtune.json")
    assert run("verify", folder)[2].startswith(f"error: {folder}/model.onnx: its bytes are not those of")


def test_what_goes_wrong_is_one_line_and_exit_code_2(
    run: Run, tiny_bundle: Path, s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*arguments: object) -> str:
        code, out, error = run(*arguments)
        assert (code, out, error.count("\n")) == (2, "", 1)
        return error

    missing = f"{s3}-missing"
    assert told("verify", f"{missing}/bundle.zip") == (
        f"error: {missing}/bundle.zip: cannot be used: The specified bucket does not exist\n"
    )
    assert "bucket does not exist" in told("pack", tiny_bundle, f"{missing}/bundle.zip")
    assert told("verify", f"{s3}/gone.zip") == f"error: {s3}/gone.zip: no such file or folder\n"
    assert "Protocol not known: nowhere" in told("verify", "nowhere://x/y")
    assert told("predict", tiny_bundle, f"{s3}/a.png") == (
        f"error: {s3}/a.png: must be on this machine; fetch it first\n"
    )
    with keys_checked(s3_server):
        assert "Access Key Id you provided does not exist" in told("verify", f"{s3}/bundle.zip")
    monkeypatch.delitem(loaded_stores, "s3")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert told("verify", f"{s3}/x").endswith("Install s3fs to access S3: pip install 'dermtune[s3]'\n")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert told("verify", f"{s3}/bundle.zip") == (
        f"error: {s3}/bundle.zip: stores are reached through fsspec: pip install 'dermtune[s3]'\n"
    )
