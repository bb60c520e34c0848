"""A registry: what is promoted stays, one writer wins, and a kill leaves no half state."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from dermtune.errors import RegistryError
from dermtune.registry import Registry
from dermtune_bundle import Bundle
from dermtune_bundle.bundle import write_bundle


@pytest.fixture
def bundles(tiny_bundle: Path) -> list[Path]:
    """Three that differ in their name alone."""
    opened, found = Bundle.open(tiny_bundle), []
    for name in ("first", "second", "third"):
        folder = tiny_bundle.parent / name
        write_bundle(
            folder,
            model=(tiny_bundle / "model.onnx").read_bytes(),
            manifest=replace(opened.manifest, name=name),
            card="# Card\n",
            further=opened.golden,
        )
        found.append(folder)
    return found


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "registry")


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> str:
    """Both kinds of registry."""
    if request.param == "folder":
        return str(request.getfixturevalue("url"))
    return f"{request.getfixturevalue('s3')}/team/registry"


def test_what_is_promoted_is_champion_until_the_next_and_can_be_gone_back_to(
    place: str, bundles: list[Path], tmp_path: Path
) -> None:
    registry = Registry(place)
    assert registry.champion() is None
    first, second, _ = (registry.add(bundle) for bundle in bundles)
    registry.promote(first, over=None, reason="the first")
    registry.promote(second, over=first, reason="finds more")
    assert registry.champion() == second
    registry.rollback(reason="complaints")
    assert Registry(place).champion() == first
    assert [(one.number, one.version, one.replaces, one.reason) for one in registry.history()] == [
        (1, first, None, "the first"),
        (2, second, first, "finds more"),
        (3, first, second, "complaints"),
    ]
    assert Bundle.open(registry.fetch(second, tmp_path / "out.zip")).manifest.name == "second"
    assert len(registry.versions()) == 3


def test_a_bundle_that_is_kept_does_not_change(url: str, bundles: list[Path]) -> None:
    registry = Registry(url)
    version = registry.add(bundles[0])
    kept = Path(url, "bundles", f"{version}.zip")
    before = kept.stat()
    assert registry.add(bundles[0]) == version
    assert kept.stat().st_ino == before.st_ino


def test_who_compared_with_another_champion_is_refused(place: str, bundles: list[Path]) -> None:
    registry = Registry(place)
    first, second, third = (registry.add(bundle) for bundle in bundles)
    registry.promote(first, over=None, reason="")
    registry.promote(second, over=first, reason="")
    with pytest.raises(RegistryError, match="the champion is no longer"):
        registry.promote(third, over=first, reason="")
    with pytest.raises(RegistryError, match="keeps no bundle"):
        registry.promote("0" * 64, over=second, reason="")
    with pytest.raises(RegistryError, match="keeps no bundle"):
        registry.promote("../../etc/passwd", over=second, reason="")
    assert registry.champion() == second


def test_going_back_twice_goes_back_by_two(url: str, bundles: list[Path]) -> None:
    registry = Registry(url)
    first, second, third = (registry.add(bundle) for bundle in bundles)
    for over, version in ((None, first), (first, second), (second, third)):
        registry.promote(version, over=over, reason="")
    registry.rollback(reason="bad")
    assert registry.champion() == second
    registry.rollback(reason="bad as well")
    assert registry.champion() == first
    with pytest.raises(RegistryError, match="no champion to go back to"):
        registry.rollback(reason="")
    registry.promote(third, over=first, reason="mended")
    registry.rollback(reason="still bad")
    assert registry.champion() == first
    with pytest.raises(RegistryError, match="is the champion already"):
        registry.promote(first, over=first, reason="")


def test_there_is_nothing_to_go_back_to_at_first(place: str, bundles: list[Path]) -> None:
    registry = Registry(place)
    with pytest.raises(RegistryError, match="no champion to go back to"):
        registry.rollback(reason="")
    registry.promote(registry.add(bundles[0]), over=None, reason="")
    with pytest.raises(RegistryError, match="no champion to go back to"):
        registry.rollback(reason="")


def test_a_damaged_history_is_refused_and_not_guessed_at(url: str, bundles: list[Path]) -> None:
    registry = Registry(url)
    first, second, _ = (registry.add(bundle) for bundle in bundles)
    registry.promote(first, over=None, reason="")
    registry.promote(second, over=first, reason="")
    line = Path(url, "history", "00000001.json")
    whole = line.read_text()
    line.write_text(whole[:40])
    with pytest.raises(RegistryError, match=r"00000001\.json: damaged"):
        registry.champion()
    line.unlink()
    with pytest.raises(RegistryError, match="a file of the history is missing or changed"):
        registry.champion()


def test_an_exchanged_bundle_is_refused(url: str, bundles: list[Path], tmp_path: Path) -> None:
    registry = Registry(url)
    first, second, _ = (registry.add(bundle) for bundle in bundles)
    kept = Path(url, "bundles")
    (kept / f"{first}.zip").write_bytes((kept / f"{second}.zip").read_bytes())
    with pytest.raises(RegistryError, match="it was exchanged"):
        registry.fetch(first, tmp_path / "out.zip")


PROMOTE = """
import sys
from dermtune.errors import RegistryError
from dermtune.registry import Registry
registry, version, over = Registry(sys.argv[1]), sys.argv[2], sys.argv[3]
registry.history()
print("ready", flush=True)
sys.stdin.readline()
try:
    print(registry.promote(version, over=over, reason="race").number)
except RegistryError as error:
    print(error)
"""


def test_of_writers_at_once_one_promotes(place: str, bundles: list[Path]) -> None:
    registry = Registry(place)
    first, second, third = (registry.add(bundle) for bundle in bundles)
    registry.promote(first, over=None, reason="")
    racing = [
        subprocess.Popen(
            [sys.executable, "-c", PROMOTE, place, version, first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for version in (second, third) * 3
    ]
    for process in racing:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in racing:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].strip() for process in racing]
    assert said.count("2") == 1
    assert sum("the champion is no longer" in one for one in said) == 5
    assert len(registry.history()) == 2


ENDLESS = """
import sys
from pathlib import Path
from dermtune.registry import Registry
registry, bundles = Registry(sys.argv[1]), [Path(path) for path in sys.argv[2:]]
while True:
    for bundle in bundles:
        for kept in (Path(sys.argv[1]) / "bundles").glob("*.zip"):
            pass
        version = registry.add(bundle)
        if version != (champion := registry.champion()):
            registry.promote(version, over=champion, reason="again")
            print("promoted", flush=True)
"""


def test_a_kill_at_any_moment_leaves_no_half_state(url: str, bundles: list[Path], tmp_path: Path) -> None:
    rng, promoted = random.Random(1), 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", ENDLESS, url, *bundles], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "promoted\n"
        time.sleep(rng.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        told = 1 + writer.communicate()[0].count("promoted")
        history = Registry(url).history()
        assert promoted + told <= len(history) <= promoted + told + 1, "what was told of is there"
        promoted = len(history)
    for version in Registry(url).versions():
        Registry(url).fetch(version, tmp_path / "out.zip")


RELEASE = """
import os, sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from dermtune.registry import Registry
from dermtune_bundle import Bundle
from dermtune_bundle.bundle import write_bundle
registry, bundle = Registry(sys.argv[1]), Bundle.open(sys.argv[2])
model = Path(sys.argv[2], "model.onnx").read_bytes()
while True:
    with TemporaryDirectory() as folder:
        card = os.urandom(8 << 20).hex()
        new = Path(folder, "bundle")
        write_bundle(new, model=model, manifest=bundle.manifest, card=card, further=bundle.golden)
        print("adding", flush=True)
        registry.promote(registry.add(new), over=registry.champion(), reason="again")
        print("promoted", flush=True)
"""


def test_a_writer_that_is_killed_leaves_nothing_half_in_a_bucket(
    s3: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    registry = Registry(f"{s3}/registry")
    rng, told = random.Random(1), 0
    for begun in (True, True, False):
        writer = subprocess.Popen(
            [sys.executable, "-c", RELEASE, f"{s3}/registry", tiny_bundle], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "adding\n"
        if begun:  # at once when the first byte of it could be seen
            before = registry.versions()
            while registry.versions() == before:
                pass
        else:
            time.sleep(rng.uniform(0, 0.6))
        writer.send_signal(signal.SIGKILL)
        told += writer.communicate()[0].count("promoted")
        assert told <= len(registry.history()) <= len(registry.versions())
    for version in registry.versions():
        registry.fetch(version, tmp_path / "out.zip")


def test_a_bucket_that_is_none_or_refuses_is_told_in_a_line(
    s3: str, s3_server: str, bundles: list[Path]
) -> None:
    nowhere = Registry("s3://there-is-none/registry")
    assert nowhere.champion() is None
    with pytest.raises(RegistryError, match=r"s3://there-is-none/registry: cannot be used: .*does not exist"):
        nowhere.add(bundles[0])
    let_in(s3_server, "0")
    try:
        with pytest.raises(RegistryError, match=f"{s3}/registry: cannot be used: The AWS Access Key Id"):
            Registry(f"{s3}/registry").champion()
    finally:
        let_in(s3_server, "inf")


def let_in(server: str, requests: str) -> None:
    """Tell moto how many requests it answers before it looks at keys, of which it then knows none."""
    headers = {"Content-Type": "text/plain"}
    urlopen(Request(f"{server}/moto-api/reset-auth", requests.encode(), headers)).close()  # noqa: S310 - loopback


def test_a_server_that_is_not_there_is_told_in_a_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    refused = dermtune("--registry", f"{s3}/registry", "list")
    assert refused.returncode == 2
    assert refused.stderr == (
        f'error: {s3}/registry: cannot be used: Could not connect to the endpoint URL: "http://127.0.0.1:1"\n'
    )


def test_places_that_are_none_are_named() -> None:
    with pytest.raises(RegistryError, match="nowhere://x"):
        Registry("nowhere://x")


def dermtune(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "dermtune", "registry", *arguments]
    return subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)


def test_the_command_line_promotes_lists_shows_and_goes_back(url: str, bundles: list[Path]) -> None:
    at = ("--registry", url)
    for bundle, reason in zip(bundles[:2], ("the first", "finds more"), strict=True):
        assert dermtune(*at, "promote", bundle, "--reason", reason).returncode == 0
    first, second = (one.version for one in Registry(url).history())
    assert dermtune(*at, "rollback", "--reason", "complaints").returncode == 0
    lines = dermtune(*at, "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert f"{first[:12]}  champion  complaints" in lines[2]
    shown = dermtune(*at, "show", second[:8]).stdout
    assert f"second, version {second}" in shown
    assert "classes: mel, nv, bcc" in shown
    assert "finds more" in shown
    refused = dermtune(*at, "promote", "nothing", "--reason", "x")
    assert refused.returncode == 2
    assert refused.stderr == f"error: {url}: 'nothing' names 0 bundles, not one\n"


def test_what_is_kept_beside_a_bundle_stays_and_is_not_part_of_it(tiny_bundle: Path, place: str) -> None:
    registry = Registry(place)
    version = registry.add(tiny_bundle, beside={"note.txt": b"first"})
    assert registry.add(tiny_bundle, beside={"note.txt": b"second", "more.txt": b"more"}) == version
    assert registry.beside(version, "note.txt") == b"first"
    assert registry.beside(version, "more.txt") == b"more"
    assert registry.beside(version, "absent.txt") is None
    assert registry.versions() == [version]
