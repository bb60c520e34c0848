import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermtune.engine import ComputeConfig
from dermtune.params import Params
from dermtune.stages import ingest as stage
from dermtune.stages.ingest import IngestConfig, ingest
from dermtune.table import read_table


def picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (36, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    rows = ["image_id,lesion_id,label,mask"]
    for number in range(40):
        picture(folder / f"I{number:02d}.{'jpg' if number % 3 else 'bmp'}", number)
        rows.append(f"I{number:02d},L{number},{('mel', 'nv')[number % 2]},")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def run(params: Params, source: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Ingest, and give the ids of the images that were looked at."""
    looked: list[str] = []
    check = stage.check_images

    def spy(images: list[stage.SourceImage], compute: ComputeConfig) -> object:
        looked[:] = [image.image_id for image in images]
        return check(images, compute)

    monkeypatch.setattr(stage, "check_images", spy)
    values = params.ingest.model_dump() | {"source": "listed", "path": str(source), "max_quarantine": 0.5}

    def call(out: Path, notes: Path | None) -> list[str]:
        ingest(IngestConfig.model_validate(values), seed=1, out=out, notes=notes)
        return [*looked]

    return call


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_only_new_and_changed_files_are_looked_at_and_the_result_is_the_same(
    run: Callable[..., list[str]], source: Path, tmp_path: Path
) -> None:
    out, notes = tmp_path / "out", tmp_path / "notes" / "ingest.json"
    assert len(run(out, notes)) == 40
    assert run(out, notes) == []

    picture(source / "I04.jpg", 104)
    (source / "I05.jpg").write_bytes(b"no image")
    (source / "I06.bmp").unlink()
    picture(source / "I00x.png", 200)  # before the others
    table = (source / "labels.csv").read_text().replace("I00,", "I00x,L90,nv,\nI00,", 1)
    (source / "labels.csv").write_text(table.replace("I07,L7,nv", "I07,L7,mel"))

    assert run(out, notes) == ["I00x", "I04", "I05", "I06"]
    afresh = tmp_path / "afresh"
    assert len(run(afresh, None)) == 41
    assert files(out) == files(afresh)


def test_what_lies_there_is_not_trusted_where_the_notes_are_of_something_else(
    run: Callable[..., list[str]], source: Path, tmp_path: Path
) -> None:
    out, notes = tmp_path / "out", tmp_path / "ingest.json"
    run(out, notes)
    kept = notes.read_bytes()
    others = (b"{", kept.replace(b'"code": "', b'"code": "x'), kept.replace(b'.tar": "', b'.tar": "x'))
    for spoilt in others:
        notes.write_bytes(spoilt)
        assert len(run(out, notes)) == 40
    assert notes.read_bytes() == kept
    (out / "images.parquet").unlink()
    assert len(run(out, notes)) == 40
    os.utime(source / "I03.bmp", ns=(1, 1))
    assert run(out, notes) == ["I03"]


def test_a_run_that_is_broken_off_leaves_no_notes_that_hold_no_more(
    run: Callable[..., list[str]], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, notes = tmp_path / "out", tmp_path / "ingest.json"
    run(out, notes)
    picture(source / "I00.bmp", 300)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(stage, "write_table", fail)
        with pytest.raises(KeyboardInterrupt):
            run(out, notes)
    assert not notes.exists()
    assert len(run(out, notes)) == 40


def test_shards_of_an_earlier_larger_run_go(run: Callable[..., list[str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "images-007.tar").write_bytes(b"of an earlier run")
    run(out, None)
    assert [path.name for path in out.glob("*.tar")] == ["images-000.tar"]


def test_copies_of_known_and_new_images_are_found_as_if_all_were_new(
    run: Callable[..., list[str]], source: Path, tmp_path: Path
) -> None:
    out, notes = tmp_path / "out", tmp_path / "ingest.json"
    with Image.open(source / "I01.jpg") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source / "I07.jpg", quality=95)
    run(out, notes)
    with Image.open(source / "I01.jpg") as image:
        image.save(source / "I20.jpg", quality=92)
        image.save(source / "I00a.png")
    rows = (source / "labels.csv").read_text().replace("I00,", "I00a,L90,mel,\nI00,", 1)
    (source / "labels.csv").write_text(rows)
    assert run(out, notes) == ["I00a", "I20"]
    afresh = tmp_path / "afresh"
    run(afresh, None)
    assert files(out) == files(afresh)
    copies = read_table(out / "images.parquet").set_index("image_id")["group_id"]
    assert len({copies[name] for name in ("I00a", "I01", "I07", "I20")}) == 1
