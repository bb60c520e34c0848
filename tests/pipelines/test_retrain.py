"""Real DVC, a real server, real comparisons of tiny bundles; training itself is in test_project.py."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pipelines import retrain as flows
from pipelines.retrain import retrain

from dermtune.appearance import MASKS
from dermtune.duplicates import SIDE
from dermtune.leakage import PRINTS
from dermtune.registry import Registry
from dermtune.shards import ImagePacker
from dermtune.splits import read_splits
from dermtune.table import COLUMNS, table_sha256, write_table
from dermtune_bundle.bundle import Bundle, write_bundle
from dermtune_bundle.manifest import Manifest, OperatingPoint

pytestmark = pytest.mark.usefixtures("server")

ROOT = Path(__file__).parents[2]
# What training would give lies in made/; the stages bring it to where they leave it.
STAGES = """\
stages:
  ingest:
    cmd: rm -rf data/ingest && cp -r made/ingest data/ingest
    deps: [source, data/splits.csv]
    outs: [data/ingest]
  export:
    cmd: "if test -e made/missed; then echo 'error: not exported: auroc_macro is 0.5' >&2; exit 1; fi;
      cp -r made/export data/export"
    deps: [data/ingest, made]
    outs: [data/export]
"""


def split_of(number: int) -> str:
    return "test" if number >= 12 else "train" if number < 4 else "val"


@pytest.fixture
def project(make_project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_project(STAGES)
    params = (ROOT / "params.yaml").read_text()
    margins = "{auroc: 0.02, sensitivity: 0.03, specificity: 0.05}"
    assert margins in params
    wide = "{auroc: 0.2, sensitivity: 0.2, specificity: 0.2}"  # of so few lesions
    params = params.replace(margins, wide).replace("subgroup_margin: 0.10", "subgroup_margin: 0.30")
    params = params.replace("source: synthetic ", "source: ham10000 ").replace(
        "path: data/raw", "path: source"
    )
    (folder / "params.yaml").write_text(params)
    (folder / "data/splits.csv").write_text("sha256,split\n")
    (folder / "source").mkdir()
    quick = flows.look_at_source.with_options(retry_delay_seconds=[0, 0, 0])
    monkeypatch.setattr(flows, "look_at_source", quick)
    return folder


@pytest.fixture
def train(project: Path, make_graph: Callable[..., bytes], tiny_manifest: Manifest) -> Callable[..., str]:
    """Put into made/ what a training on so many lesions would give."""

    def make(lesions: int, threshold: float = 0.5) -> str:
        shutil.rmtree(project / "made", ignore_errors=True)
        images, rows = project / "made/ingest", []
        with ImagePacker(images) as packer:
            for number in range(lesions):
                is_mel = number % 2 == 0
                path = project / "source" / f"{number}.png"
                Image.new("RGB", (40, 50), (220, 30, 5) if is_mel else (30, 220, 5)).save(path)
                shard, offset, size = packer.add(path.name, path.read_bytes())
                row = dict.fromkeys(COLUMNS) | {"label": "mel" if is_mel else "nv", "source": "folder"}
                row |= {"split": split_of(number), "has_mask": False}
                row |= {"image_id": f"I{number}", "lesion_id": f"L{number}", "group_id": f"G{number}"}
                row |= {"sha256": f"{number:064}", "width": 40, "height": 50}
                rows.append(row | {"shard": shard, "offset": offset, "size": size})
        write_table(pd.DataFrame(rows).infer_objects(), images / "images.parquet")
        prints = np.random.default_rng(0).integers(0, 256, (lesions, SIDE, SIDE), dtype=np.uint8)
        np.save(images / PRINTS, prints)
        np.save(images / MASKS, np.zeros((lesions, 8), np.uint8))
        point = OperatingPoint("mel", "mel", threshold, "sensitivity >= 0.90 on validation", 0.92, 0.81)
        manifest = replace(
            tiny_manifest,
            golden=(),
            operating_points=(point,),
            lineage={"images_sha256": table_sha256(images)},
        )
        write_bundle(project / "made/export", model=make_graph(), manifest=manifest, card="# Card")
        return Bundle.open(project / "made/export").version

    return make


def run(project: Path) -> tuple[str, str]:
    state = retrain(project, str(project / "registry"), return_state=True)
    return str(state.name), str(state.message)


def test_promoted_unchanged_promoted_refused_and_unchanged(project: Path, train: Callable[..., str]) -> None:
    registry = Registry(str(project / "registry"))
    first = train(44)
    assert run(project) == ("Promoted", f"{first[:12]} is the first champion")
    assert run(project) == ("Unchanged", "nothing new; the champion is of these images")

    second = train(60)
    assert run(project) == ("Promoted", f"{second[:12]} replaces {first[:12]}")
    assert read_splits(project / "data/splits.csv") == {
        f"{number:064}": split_of(number) for number in range(44)
    }, "what was there before keeps its split; it is written before ingest runs"
    assert registry.champion() == second

    third = train(62, threshold=0.999)
    name, message = run(project)
    assert name == "Refused"
    assert message.startswith("2 reasons, such as: all lesions: sensitivity, mel: 1.000, now 0.000")
    assert registry.champion() == second
    assert third in registry.versions(), "what was refused is kept, for people to look at"
    uses = registry.comparisons()
    assert [(one["number"], one["passed"], one["lesions"]) for one in uses] == [
        (1, True, 48),
        (2, False, 50),
    ]
    assert json.dumps(uses)

    name, message = run(project)
    assert name == "Unchanged"
    assert message.startswith("nothing new; comparison 2 refused this bundle: all lesions: sensitivity")
    assert len(registry.comparisons()) == 2, "the test split is not used again for what is known"


def test_a_model_that_misses_a_gate_is_refused(project: Path, train: Callable[..., str]) -> None:
    first = train(44)
    run(project)
    train(46)
    (project / "made/missed").touch()
    (project / "data/evaluate").mkdir()
    (project / "data/evaluate/metrics.json").write_text((project / "metrics.json").read_text())
    assert run(project) == ("Refused", "export: not exported: auroc_macro is 0.5")
    name, message = run(project)
    assert name == "Unchanged", "it is told once, and not every night"
    assert message.endswith("refused this bundle: export: not exported: auroc_macro is 0.5")
    assert Registry(str(project / "registry")).champion() == first


def test_a_source_that_is_not_there_costs_nothing(project: Path, train: Callable[..., str]) -> None:
    train(44)
    run(project)
    (project / "source").rename(project / "unmounted")
    gone = ("Failed", "source: the source is not there; nothing was changed")
    assert run(project) == gone
    (project / "source").mkdir()  # a share that is not mounted is an empty folder
    assert run(project) == gone
    assert (project / "data/ingest/images.parquet").exists()
    assert (project / "data/export/bundle.json").exists()
    (project / "source").rmdir()
    (project / "unmounted").rename(project / "source")
    assert run(project)[0] == "Unchanged", "the next run heals"


def test_who_went_back_is_not_overruled_at_night(project: Path, train: Callable[..., str]) -> None:
    registry = Registry(str(project / "registry"))
    first = train(44)
    run(project)
    second = train(60)
    assert run(project)[0] == "Promoted"
    registry.rollback(reason="misses nodular melanomas")
    assert registry.champion() == first
    name, message = run(project)
    assert name == "Unchanged"
    assert f"{second[:12]} was champion until somebody went back" in message
    (project / "source/notes.txt").write_text("changes nothing in the bundle")
    name, message = run(project)
    assert (name, registry.champion()) == ("Unchanged", first)


def test_images_that_change_nothing_are_no_comparison(project: Path, train: Callable[..., str]) -> None:
    train(44)
    run(project)
    (project / "source/broken.png").write_bytes(b"no image")
    assert run(project) == ("Unchanged", "the champion is of these images")
    assert Registry(str(project / "registry")).comparisons() == []


def test_a_registry_that_cannot_be_reached_is_a_line(project: Path, train: Callable[..., str]) -> None:
    train(44)
    run(project)
    (project / "registry/comparisons").mkdir()
    (project / "registry/comparisons/00000001.json").write_text("{ half")
    train(46)
    name, message = run(project)
    assert name == "Failed"
    assert "00000001.json: damaged" in message
