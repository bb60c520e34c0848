"""The same work here and on a real Ray cluster of two processes: the same bytes, whatever dies meanwhile."""

import hashlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dermtune import quality
from dermtune.backbone import load_backbone
from dermtune.engine import LOCAL, ComputeConfig, _join, each
from dermtune.errors import ConfigError, DataError
from dermtune.params import Params
from dermtune.scoring import Scored, score_inbox
from dermtune.shards import open_array
from dermtune.sources.synthetic import synthetic
from dermtune.stages.augment import augment
from dermtune.stages.embed import embed, embed_files
from dermtune.stages.ingest import ingest
from dermtune.stages.search import search
from dermtune.trunk import runner_maker

RAY = ComputeConfig(engine="ray", workers=2, address="")
WORK = """\
import os, signal
from functools import partial
from pathlib import Path

from dermtune.errors import DataError


def die_once(marker):
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def make_square(marker, deadly):
    return partial(square, marker, deadly)


def square(marker, deadly, number):
    if number == deadly:
        die_once(marker)
    return number * number, os.getpid()


def make_deadly():
    return lambda number: os.kill(os.getpid(), signal.SIGKILL)


def make_refusing():
    return refuse


def refuse(number):
    raise DataError(f"{number} is refused") from OSError("the store is away")


def make_strange():
    return raise_strange


class StrangeError(Exception):
    def __init__(self, one, two):
        super().__init__("strange")
        self.lock = lambda: one


def raise_strange(number):
    raise StrangeError(number, number)


def make_reader():
    return lambda name: Path(name).read_text()


def make_loser():
    from dermtune.quality import NO_FILE
    return lambda image: NO_FILE


def make_dying_runner(marker, make):
    run = make()

    def die_within(batches):
        for number, batch in enumerate(run(batches)):
            yield batch
            if number == 1:
                die_once(marker)

    return die_within
"""

STRANGER = """\
import os, subprocess, sys

from dermtune.engine import ComputeConfig, engine

if __name__ == "__main__":
    with engine(ComputeConfig(engine="ray", workers=1, address=""), dict):
        import ray

        command = [sys.executable, "-c", "import ray, sys; ray.init(sys.argv[1]); print('let in')"]
        told = subprocess.run(
            [*command, ray.get_runtime_context().gcs_address],
            env=os.environ | {"RAY_AUTH_TOKEN": "0" * 64},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(told.returncode, told.stdout)
"""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module that every process can import, as it can dermtune."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "ray_work.py").write_text(WORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield import_module("ray_work")


@pytest.fixture(scope="module")
def cluster(pieces: Any) -> Iterator[None]:  # noqa: ANN401, ARG001
    """One for all tests: it takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")  # read when Ray is imported
        patch.setenv("RAY_AUTH_TOKEN", "1" * 64)
        ray = pytest.importorskip("ray", reason="Ray is an extra")
        _join(ray, RAY)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_loses_and_doubles_nothing(pieces: Any, tmp_path: Path) -> None:  # noqa: ANN401
    make = partial(pieces.make_square, tmp_path / "died", 50)
    done = list(each(RAY, make, range(100), chunk=3))
    assert [square for square, _ in done] == [number * number for number in range(100)]
    assert (tmp_path / "died").exists()
    assert len({process for _, process in done}) > 1


@pytest.mark.usefixtures("cluster")
def test_what_kills_every_worker_is_told(pieces: Any) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match="could not do a piece of work, 3 retries"):
        list(each(RAY, pieces.make_deadly, [1]))


@pytest.mark.usefixtures("cluster")
def test_what_the_work_raises_is_raised_here(pieces: Any) -> None:  # noqa: ANN401
    for compute, processes in ((RAY, False), (LOCAL, True), (LOCAL, False)):
        with pytest.raises(DataError, match=r"^7 is refused$") as told:
            list(each(compute, pieces.make_refusing, [7, 8], processes=processes))
        assert str(told.value.__cause__) == "the store is away", "a flow tries again after an OSError"
    with pytest.raises(DataError, match="Failed to deserialize exception"):
        list(each(RAY, pieces.make_strange, [1]))
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU"):
        list(each(RAY, pieces.make_refusing, [1], gpus=1))


@pytest.mark.usefixtures("cluster")
def test_paths_begin_where_the_command_was_given(
    pieces: Any,  # noqa: ANN401
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("found")
    monkeypatch.chdir(tmp_path / "here")
    assert list(each(RAY, pieces.make_reader, ["file"])) == ["found"]
    with pytest.raises(DataError, match=r"No such file.*absent.*every machine needs the project's folder"):
        list(each(RAY, pieces.make_reader, ["absent"]))


@pytest.mark.usefixtures("cluster")
def test_an_image_that_another_machine_does_not_see_is_looked_for_here(
    pieces: Any,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "make_check", pieces.make_loser)
    image = next(iter(synthetic(lesions=40, seed=1)))
    (checked,) = quality.check_images([image], RAY)
    assert checked.sha256 == hashlib.sha256(image.content()).hexdigest()


def test_who_does_not_know_the_secret_is_let_in_nowhere(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra")
    (tmp_path / "start.py").write_text(STRANGER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    tried = subprocess.run(
        [sys.executable, tmp_path / "start.py"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert tried.returncode == 0, tried.stderr
    assert "let in" not in tried.stdout
    assert "token" in tried.stdout.lower()


def test_a_local_process_that_is_killed_is_told(pieces: Any) -> None:  # noqa: ANN401
    with pytest.raises(DataError, match="a worker process was killed"):
        list(each(LOCAL, pieces.make_deadly, [1], processes=True))


def same_files(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.usefixtures("cluster")
def test_ingest_writes_the_same_bytes(params: Params, ingested: Path, tmp_path: Path) -> None:
    ingest(params.ingest, seed=params.seed, out=tmp_path, compute=RAY)
    same_files(tmp_path, ingested)


@pytest.mark.usefixtures("cluster")
def test_augment_writes_the_same_bytes(
    params: Params, ingested: Path, augmented: Path, tmp_path: Path
) -> None:
    size = params.backbone.input_size
    augment(params.augment, input_size=size, seed=params.seed, images=ingested, out=tmp_path, compute=RAY)
    same_files(tmp_path, augmented)


@pytest.mark.usefixtures("cluster")
def test_embed_writes_the_same_bytes(params: Params, augmented: Path, embedded: Path, tmp_path: Path) -> None:
    embed(params.embed, backbone=params.backbone, views=augmented, out=tmp_path, compute=RAY)
    same_files(tmp_path, embedded)


@pytest.mark.usefixtures("cluster")
def test_embed_writes_the_same_bytes_though_a_worker_dies_in_the_midst_of_a_file(
    params: Params,
    augmented: Path,
    embedded: Path,
    pieces: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    trunk = load_backbone(params.backbone).trunk
    make = runner_maker(
        trunk, input_size=params.backbone.input_size, dtype=params.embed.dtype, device="cpu", threads=1
    )
    shape = open_array(embedded / "val.npy").shape[1:]
    dying = partial(pieces.make_dying_runner, tmp_path / "died", make)
    names = ("train-00.npy", "train-01.npy")
    (tmp_path / "out").mkdir()
    embed_files(
        params.embed, dying, [augmented / name for name in names], shape, tmp_path / "out", compute=RAY
    )
    assert (tmp_path / "died").exists()
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (embedded / name).read_bytes()


@pytest.mark.usefixtures("cluster")
def test_scoring_gives_the_same_answers(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    for grey in range(40):
        Image.new("RGB", (50, 40), (grey, 100, 0)).save(tmp_path / "inbox" / f"{grey:02}.png")
    Image.new("RGB", (50, 40), (7, 100, 0)).save(tmp_path / "inbox/copy.png")
    (tmp_path / "inbox/bad.png").write_bytes(b"no image")
    found = []
    for compute in (RAY, LOCAL):
        out = tmp_path / f"{compute.engine}.db"
        scored = score_inbox(tiny_bundle, str(tmp_path / "inbox"), out, compute=compute)
        assert scored == Scored(answered=40, failed=1, known=1)
        with sqlite3.connect(out) as scores:
            columns = "sha256, bundle, path, answer, error, sharpness, brightness, side, embedding"
            found.append(scores.execute(f"SELECT {columns} FROM scores ORDER BY sha256").fetchall())  # noqa: S608
    assert found[0] == found[1]


@pytest.mark.usefixtures("cluster")
def test_a_search_tries_the_same_and_finds_the_same(
    params: Params, ingested: Path, embedded: Path, tmp_path: Path
) -> None:
    config = params.search.model_copy(update={"trials": 3, "part": 1, "epochs": 2, "side_by_side": 2})
    best = [
        search(
            config,
            recipe=params.finetune,
            backbone=params.backbone,
            seed=params.seed,
            images=ingested,
            activations=embedded,
            storage=tmp_path / f"{compute.engine}.db",
            out=tmp_path / compute.engine,
            compute=compute,
        )
        for compute in (RAY, LOCAL)
    ]
    assert best[0] == best[1]
    tables = [(tmp_path / name / "trials.csv").read_bytes() for name in ("ray", "local")]
    assert tables[0] == tables[1]


def test_a_cluster_that_is_not_there_is_told_at_once(pieces: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    absent = RAY.model_copy(update={"address": "127.0.0.1:1"})
    with pytest.raises(ConfigError, match=r"compute\.address: '127\.0\.0\.1:1': no Ray cluster there"):
        _join(pytest.importorskip("ray"), absent)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'dermtune\[ray\]'"):
        list(each(RAY, pieces.make_deadly, [1]))
