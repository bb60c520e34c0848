"""Held against a stand-in of the Archive's API on loopback, which isic-cli asks as it asks the Archive."""

import csv
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from filelock import FileLock
from isic_cli.io.http import download_image
from isic_cli.session import ISIC_RETRY_STRATEGY
from tenacity import wait_none

from dermtune.errors import SourceError
from dermtune.isic_archive import Fetched, fetch
from dermtune.sources.isic_archive import isic_archive

LICENSES = ("CC-0", "CC-BY", "CC-BY-NC")
NAMED = 'Department of Dermatology, Ångström, "A" & B'
PAGE = 3
FETCH = (
    "import sys; from pathlib import Path; from dermtune.isic_archive import fetch;"
    " fetch('', Path(sys.argv[1]), api=sys.argv[2])"
)


class Archive(ThreadingHTTPServer):
    """What the Archive answers to isic-cli: pages of a search, and files."""

    daemon_threads = True

    def __init__(self, images: int = 7) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.api = f"http://{self.host}/api/v2"
        self.files = {f"ISIC_{number:07}": b"pixels " * 999 + b"%d" % number for number in range(images)}
        self.asked: list[str] = []
        self.queries: list[str] = []
        self.failures: Counter[str] = Counter()  # by path: how many times it answers 500
        self.gone: set[str] = set()
        self.cut: set[str] = set()  # files that break off, once
        self.hung: set[str] = set()  # files that never end
        self.body: bytes | None = None  # what every question is answered with

    def image(self, isic_id: str) -> dict[str, Any]:
        number = int(isic_id.removeprefix("ISIC_"))
        return {
            "isic_id": isic_id,
            "public": True,
            "copyright_license": LICENSES[number % 3],
            "attribution": "Anonymous" if number else NAMED,
            "files": {
                "full": {
                    "url": f"http://{self.host}/files/{isic_id}.jpg?signature={len(self.asked)}",
                    "size": len(self.files[isic_id]),
                },
                "thumbnail_256": {"url": f"http://{self.host}/small/{isic_id}.jpg", "size": 1},
            },
            "metadata": {
                "acquisition": {"pixels_x": 600, "pixels_y": 450, "image_type": "dermoscopic"},
                "clinical": {
                    "age_approx": 50,
                    "sex": "female" if number % 2 else None,
                    "melanocytic": True,
                    "diagnosis_1": "Benign",
                    "diagnosis_2": "Benign melanocytic proliferations",
                    "diagnosis_3": "Nevus",
                },
            },
        }  # fmt: skip

    def downloads(self) -> list[str]:
        return [path.rpartition("/")[2] for path in self.asked if path.startswith("/files/")]


class _Answer(BaseHTTPRequestHandler):
    server: Archive
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.server.asked.append(address.path)
        if self.server.failures[address.path] > 0:
            self.server.failures[address.path] -= 1
            self._send(500, b"{}")
        elif self.server.body is not None:
            self._send(200, self.server.body)
        elif address.path == "/api/v2/images/search/":
            self._search(parse_qs(address.query, keep_blank_values=True))
        elif address.path.startswith("/files/"):
            self._file(Path(address.path).stem)
        else:
            self._send(404, b"{}")

    def _search(self, asked: dict[str, list[str]]) -> None:
        query, start = asked["query"][0], int(asked.get("cursor", ["0"])[0])
        self.server.queries.append(query)
        if "((" in query:
            self._send(400, json.dumps({"message": "Could not parse search query."}).encode())
            return
        found = [] if query == "sex:none" else [self.server.image(one) for one in self.server.files]
        end = start + min(PAGE, int(asked.get("limit", [PAGE])[0]))
        more = urlencode({"query": query, "cursor": end})
        answer = {
            "results": found[start:end],
            "count": len(found) if not start else None,
            "next": f"{self.server.api}/images/search/?{more}" if end < len(found) else None,
            "previous": None,
        }
        self._send(200, json.dumps(answer).encode())

    def _file(self, isic_id: str) -> None:
        content = self.server.files[isic_id]
        if isic_id in self.server.gone:
            self._send(404, b"")
        elif isic_id in self.server.cut | self.server.hung:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:100])
            if isic_id in self.server.hung:
                time.sleep(30)
            self.server.cut.discard(isic_id)
            self.close_connection = True
        else:
            self._send(200, content)

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: the tests ask the server itself."""


@pytest.fixture
def archive() -> Iterator[Archive]:
    server = Archive()
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """isic-cli waits seconds between its attempts."""
    monkeypatch.setattr(ISIC_RETRY_STRATEGY, "backoff_factor", 0)
    monkeypatch.setattr(download_image.retry, "wait", wait_none())
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def images_in(out: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (out / "images").glob("ISIC_*.jpg")}


def test_all_pages_of_a_search_are_downloaded_with_their_metadata(archive: Archive, tmp_path: Path) -> None:
    fetched = fetch("image_type:dermoscopic", tmp_path, api=archive.api)
    assert fetched == Fetched(found=7, downloaded=7, already_there=0, left_out=0)
    assert images_in(tmp_path) == archive.files
    rows = [*csv.DictReader((tmp_path / "metadata.csv").read_text(encoding="utf-8").splitlines())]
    assert [row["isic_id"] for row in rows] == [*archive.files]
    assert [*rows[0]][:3] == ["isic_id", "attribution", "copyright_license"]
    assert (rows[1]["copyright_license"], rows[1]["sex"], rows[0]["sex"]) == ("CC-BY", "female", "")
    assert (tmp_path / "attribution.txt").read_text(encoding="utf-8") == f"Anonymous\n\n{NAMED}"
    assert (tmp_path / "images" / "ISIC_0000000.jpg").stat().st_mode & 0o044  # others in the team read them


def test_what_was_fetched_is_a_source(archive: Archive, tmp_path: Path) -> None:
    fetch("", tmp_path, api=archive.api)
    images = isic_archive(tmp_path)
    assert {image.image_id: image.content() for image in images} == archive.files
    assert {(image.label, image.age, image.license) for image in images} == {
        ("Nevus", 50, license_) for license_ in LICENSES
    }


def test_a_limit_ends_the_fetch_and_asks_for_no_further_page(archive: Archive, tmp_path: Path) -> None:
    assert fetch("", tmp_path, limit=2, api=archive.api) == Fetched(7, 2, 0, 0)
    assert sorted(images_in(tmp_path)) == [*archive.files][:2]
    assert archive.asked.count("/api/v2/images/search/") == 2  # how many, and the first page


def test_images_under_other_licences_are_never_downloaded(archive: Archive, tmp_path: Path) -> None:
    assert fetch("", tmp_path, licenses=["CC0", "cc by 4.0"], api=archive.api) == Fetched(7, 5, 0, 2)
    assert not {"ISIC_0000002.jpg", "ISIC_0000005.jpg"} & set(archive.downloads())
    assert {image.license for image in isic_archive(tmp_path)} == {"CC-0", "CC-BY"}


def test_a_limit_counts_images_of_the_licences_that_were_asked_for(archive: Archive, tmp_path: Path) -> None:
    assert fetch("", tmp_path, limit=2, licenses=["CC-BY-NC"], api=archive.api) == Fetched(7, 2, 0, 4)


def test_where_all_are_left_out_the_licences_are_told(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="all 7 images are left out: their licences are CC-0, CC-BY, CC-BY-NC"
    ):
        fetch("", tmp_path, licenses=["CC-BY-ND"], api=archive.api)


def test_whole_images_are_not_fetched_again_and_cut_ones_are(archive: Archive, tmp_path: Path) -> None:
    fetch("", tmp_path, limit=4, api=archive.api)
    (tmp_path / "images" / "ISIC_0000001.jpg").write_bytes(b"half")
    archive.asked.clear()
    assert fetch("", tmp_path, api=archive.api) == Fetched(7, 4, 3, 0)
    assert images_in(tmp_path) == archive.files
    assert "ISIC_0000000.jpg" not in archive.downloads()


def test_a_further_search_adds_to_the_folder(archive: Archive, tmp_path: Path) -> None:
    fetch("", tmp_path, licenses=["CC-0"], api=archive.api)
    fetch("", tmp_path, licenses=["CC-BY"], api=archive.api)
    assert [image.license for image in isic_archive(tmp_path)] == ["CC-0"] * 3 + ["CC-BY"] * 2


@pytest.mark.parametrize(
    "query", ['diagnosis_3:"CD30+ & more" AND sex:female', "age_approx:[5 TO 25]", "a#b%20c"]
)
def test_the_archive_gets_the_query_as_it_was_given(archive: Archive, tmp_path: Path, query: str) -> None:
    fetch(query, tmp_path, api=archive.api)
    assert set(archive.queries) == {query}


def test_a_server_error_that_passes_is_not_noticed(archive: Archive, tmp_path: Path) -> None:
    archive.failures.update({"/api/v2/images/search/": 2, "/files/ISIC_0000003.jpg": 2})
    assert fetch("", tmp_path, api=archive.api).downloaded == 7
    assert images_in(tmp_path) == archive.files


def test_a_download_that_breaks_off_is_tried_again(archive: Archive, tmp_path: Path) -> None:
    archive.cut.update({"ISIC_0000001", "ISIC_0000004"})
    assert fetch("", tmp_path, api=archive.api).downloaded == 7
    assert images_in(tmp_path) == archive.files
    assert not [*(tmp_path / "images").glob(".*")]


def test_an_image_that_the_archive_lacks_is_told_and_the_others_are_kept(
    archive: Archive, tmp_path: Path
) -> None:
    archive.gone.add("ISIC_0000002")
    with pytest.raises(SourceError, match=r"1 images could not be had: ISIC_0000002 \(404 Not Found\)"):
        fetch("", tmp_path, api=archive.api)
    images = isic_archive(tmp_path)
    assert len(images) == 7
    with pytest.raises(FileNotFoundError):
        next(image for image in images if image.image_id == "ISIC_0000002").content()
    archive.gone.clear()
    assert fetch("", tmp_path, api=archive.api) == Fetched(7, 1, 6, 0)


def test_a_server_error_that_stays_is_told_in_a_line(archive: Archive, tmp_path: Path) -> None:
    archive.failures["/api/v2/images/search/"] = 99
    with pytest.raises(
        SourceError, match=r"answers 500 Internal Server Error: wait a little and run it again"
    ) as told:
        fetch("", tmp_path / "new", api=archive.api)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "new").exists()


def test_a_query_that_the_archive_does_not_understand_is_told(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"does not understand 'sex:\(\('.*data-dictionary"):
        fetch("sex:((", tmp_path, api=archive.api)


def test_a_query_that_finds_nothing_is_told(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no image for 'sex:none'"):
        fetch("sex:none", tmp_path, api=archive.api)


@pytest.mark.parametrize(
    "body", [b"<html>Log in to the hospital's network</html>", b"[]", b"{}", b'{"count": null}']
)
def test_an_answer_of_someone_else_is_told(archive: Archive, tmp_path: Path, body: bytes) -> None:
    archive.body = body
    with pytest.raises(SourceError, match="answers otherwise than isic-cli expects"):
        fetch("", tmp_path, api=archive.api)


@pytest.mark.parametrize("isic_id", ["../../ISIC_0000001", "ISIC_0000001/..", "", "x"])
def test_an_id_that_is_none_becomes_no_file(
    archive: Archive, tmp_path: Path, isic_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = archive.image
    monkeypatch.setattr(archive, "image", lambda known: real(known) | {"isic_id": isic_id})
    with pytest.raises(SourceError, match="answers otherwise"):
        fetch("", tmp_path / "out", api=archive.api)
    assert not archive.downloads()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_archive_out_of_reach_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9\) cannot be reached \(ConnectionError\)") as told:
        fetch("", tmp_path, api="http://127.0.0.1:9/api/v2")
    assert "\n" not in str(told.value)
    assert isinstance(told.value.__cause__, OSError)  # a flow may try again


def test_images_out_of_reach_end_the_fetch_and_those_before_are_kept(
    archive: Archive, tmp_path: Path
) -> None:
    fetch("", tmp_path, limit=3, api=archive.api)
    archive.cut = ForEver(archive.files)
    with pytest.raises(SourceError, match=r"cannot be reached \(ChunkedEncodingError\)"):
        fetch("", tmp_path, api=archive.api)
    assert len(isic_archive(tmp_path)) == len(images_in(tmp_path)) == 3


class ForEver(set[str]):
    def discard(self, _: str) -> None: ...


def test_a_folder_that_cannot_be_written_is_told(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SourceError, match="out: cannot be written: File exists"):
        fetch("", tmp_path / "out", api=archive.api)


def test_a_second_fetch_into_the_folder_is_told(archive: Archive, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".fetch.lock"), pytest.raises(SourceError, match="another fetch writes here"):
        fetch("", tmp_path, api=archive.api)


def test_a_killed_fetch_leaves_no_half_file_and_goes_on_where_it_was(
    archive: Archive, tmp_path: Path
) -> None:
    archive.hung.add("ISIC_0000005")
    running = subprocess.Popen([sys.executable, "-c", FETCH, tmp_path, archive.api])
    deadline = time.monotonic() + 60
    while len([*(tmp_path / "images").glob("ISIC_*")]) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert [*(tmp_path / "images").glob(".ISIC_partial-*/.isic-partial.*")]  # there was half of one
    assert images_in(tmp_path) == {name: archive.files[name] for name in [*archive.files][:5]}
    with pytest.raises(SourceError, match="no metadata"):
        isic_archive(tmp_path)
    archive.hung.clear()
    archive.asked.clear()
    assert fetch("", tmp_path, api=archive.api) == Fetched(7, 2, 5, 0)
    assert sorted(archive.downloads()) == ["ISIC_0000005.jpg", "ISIC_0000006.jpg"]
    assert images_in(tmp_path) == archive.files
    assert not [*(tmp_path / "images").glob(".*")]


def test_nobody_but_the_archive_is_contacted(archive: Archive, tmp_path: Path) -> None:
    """Nor is Sentry, which isic-cli's command sets up, or PyPI, where that looks for a newer version."""
    watch = """
import os, sys
def hook(event, args):
    if event == "socket.connect":
        os.write(1, f"{args[1][:2]}\\n".encode())
    elif event.startswith(("socket.getaddrinfo", "socket.gethostby", "socket.sendto")):
        os.write(1, f"{args[:2]}\\n".encode())
    elif event in {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}:
        os.write(1, f"{event} {args}\\n".encode())
sys.addaudithook(hook)
"""
    loaded = "print([name for name in sys.modules if name.startswith(('sentry_sdk', 'isic_cli.cli'))])"
    done = subprocess.run(
        [sys.executable, "-c", f"{watch}\n{FETCH}\n{loaded}", tmp_path, archive.api],
        check=True,
        capture_output=True,
        text=True,
    )
    *contacts, loaded_of_sentry = done.stdout.splitlines()
    host, port = archive.host.split(":")
    assert set(contacts) == {f"('{host}', {port})"}
    assert loaded_of_sentry == "[]"
    assert images_in(tmp_path) == archive.files


def test_without_isic_cli_the_extra_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.modules['isic_cli'] = None; {FETCH}",
            tmp_path,
            "http://127.0.0.1:9/",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert re.search(r"SourceError: .*pip install 'dermtune\[isic\]'", done.stderr)
