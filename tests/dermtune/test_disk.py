import subprocess
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
import torch

from dermtune.appearance import MASKS, NO_MASK
from dermtune.backbone import Tail, load_backbone
from dermtune.checkpoint import Resume, State
from dermtune.disk import (
    MARGIN,
    array_bytes,
    checkpoint_bytes,
    packed_bytes,
    require_room,
    training_bytes,
    weights_bytes,
)
from dermtune.duplicates import SIDE
from dermtune.errors import DataError
from dermtune.leakage import PRINTS
from dermtune.params import Params
from dermtune.stages.augment import augment
from dermtune.stages.calibrate import calibrate
from dermtune.stages.embed import embed
from dermtune.stages.evaluate import evaluate
from dermtune.stages.finetune import finetune
from dermtune.stages.ingest import ingest
from dermtune.table import read_table
from dermtune.tails import WEIGHTS
from dermtune.trunk import Fingerprint


def written(folder: Path, *patterns: str) -> int:
    """Bytes in the files of these names."""
    files = chain.from_iterable(folder.glob(pattern) for pattern in patterns)
    return sum(file.stat().st_size for file in files)


def counts(images: Path) -> dict[str, int]:
    """Images of each split."""
    return dict(read_table(images / "images.parquet")["split"].value_counts())


def make_tail(params: Params) -> Tail:
    return load_backbone(params.backbone).tail(7, dropout=0, seed=0)


def test_ingest_writes_what_was_estimated(ingested: Path) -> None:
    sizes = read_table(ingested / "images.parquet")["size"].tolist()
    estimated = packed_bytes(sizes, beside=SIDE**2 + NO_MASK.nbytes)
    assert estimated == pytest.approx(written(ingested, "images-*.tar", PRINTS, MASKS), rel=0.02)


def test_augment_and_embed_write_what_was_estimated(
    params: Params, ingested: Path, augmented: Path, embedded: Path
) -> None:
    images, size = counts(ingested), params.backbone.input_size
    rows = params.augment.views * images["train"] + images["val"]
    views = array_bytes(rows, (size, size, 3), "uint8")
    assert views == pytest.approx(written(augmented, "*.npy"), rel=0.02)
    shape = Fingerprint.read(embedded / "activations.json").shape
    activations = array_bytes(rows, shape, params.embed.dtype)
    assert activations == pytest.approx(written(embedded, "*.npy"), rel=0.02)


def test_finetune_writes_what_was_estimated(params: Params, finetuned: Path, tmp_path: Path) -> None:
    tail = make_tail(params)
    assert weights_bytes(tail) == pytest.approx(written(finetuned, WEIGHTS), rel=0.02)
    optimizer = torch.optim.AdamW(tail.parameters())
    tail(torch.rand(2, *load_backbone(params.backbone).trunk.output_shape(64))).sum().backward()
    optimizer.step()
    State(tail, tail, tail, optimizer).save(Resume(tmp_path / "kept.safetensors", "print"), [])
    assert checkpoint_bytes(tail) == pytest.approx(written(tmp_path, "kept.safetensors"), rel=0.02)
    one, three = (training_bytes(tail, tails=tails, folds=2) for tails in (1, 3))
    assert three - one == 2 * (checkpoint_bytes(tail) + weights_bytes(tail))


def test_what_no_disk_holds_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    expected = (
        r"out: embed needs about 10100000\.1 GB, and [\d.]+ GB are free on that disk: [\d.]+ GB are missing;"
        r" free some \(`dvc gc --workspace` drops old results\), store fewer views \(augment\.views\)"
    )
    with pytest.raises(DataError, match=expected):
        require_room("embed", 10**16, tmp_path / "not/yet/out")
    require_room("embed", 0, tmp_path / "not/yet/out")
    assert not (tmp_path / "not").exists()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Gives a file system of so many bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a file system may not be mounted here: {done.stderr.strip()}")
        return folder

    yield mounted
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


def test_a_file_counts_until_it_is_removed(mount: Callable[[int], Path]) -> None:
    disk = mount(MARGIN + (8 << 20))
    require_room("embed", 7 << 20, disk / "out")
    (disk / "old").write_bytes(bytes(2 << 20))
    with pytest.raises(
        DataError, match=r"needs about 74\.5 MB, and 73\.4 MB are free .*: 1\.1 MB are missing"
    ):
        require_room("embed", 7 << 20, disk / "out")
    (disk / "old").unlink()
    require_room("embed", 7 << 20, disk / "out")


@pytest.mark.usefixtures("calibrated")
def test_no_stage_starts_on_a_disk_that_is_too_small(
    mount: Callable[[int], Path], params: Params, work: Path
) -> None:
    disk = mount(1 << 20)
    seed, backbone = params.seed, params.backbone
    stages = {
        "ingest": lambda out: ingest(params.ingest, seed=seed, out=out),
        "augment": lambda out: augment(
            params.augment, input_size=backbone.input_size, seed=seed, images=work / "ingest", out=out
        ),
        "embed": lambda out: embed(params.embed, backbone=backbone, views=work / "augment", out=out),
        "finetune": lambda out: finetune(
            params.finetune,
            backbone=backbone,
            seed=seed,
            images=work / "ingest",
            activations=work / "embed",
            out=out,
            checkpoint=disk / "checkpoints/finetune.safetensors",
        ),
        "calibrate": lambda out: calibrate(
            params.calibrate, backbone=backbone, images=work / "ingest", tails=work / "finetune", out=out
        ),
        "evaluate": lambda out: evaluate(
            params.evaluate, seed=seed, images=work / "ingest", model=work / "calibrate", out=out
        ),
    }
    for name, stage in stages.items():
        with pytest.raises(DataError, match=rf"disk/{name}: {name} needs about .* are missing"):
            stage(disk / name)
        assert not [path for path in disk.rglob("*") if path.is_file()]
