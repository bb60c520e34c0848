"""What a model costs: each stage is run once more, in a folder of its own, under a meter.

The same data, choices and code give the same model; what the study measures is told of that very model alone.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dermtune.csv_tables import write_tables
from dermtune.errors import ConfigError
from dermtune.gates import GatesConfig
from dermtune.network_size import Size
from dermtune.stages.augment import augment
from dermtune.stages.calibrate import calibrate
from dermtune.stages.embed import embed
from dermtune.stages.evaluate import evaluate
from dermtune.stages.export import ExportConfig, export
from dermtune.stages.finetune import finetune
from dermtune.stages.ingest import ingest
from dermtune.studies.cost_page import cost_figure, render_cost, verdict_on
from dermtune.studies.energy import Meter, joules_per_point
from dermtune.studies.kept import Kept
from dermtune.studies.overview import Section, write_study
from dermtune_bundle.files import atomic_path

if TYPE_CHECKING:
    from dermtune.params import Params

_STATE = Path("finetune.safetensors")
TRAINING = 3
"""Multiply-adds of a training step by those of a forward pass: the pass back takes twice as many."""


def run_cost_study(params: "Params", *, splits: Path, key: Path, checkpoint: Path, out: Path) -> pd.DataFrame:
    """Run each stage anew, and write what it takes.

    Args:
        params: of all stages; `study.cost` says where the electricity comes from.
        splits: file of images whose split is kept, as ingest takes it.
        key: file of the key by which ids of patients are hashed.
        checkpoint: folder in which the stages run, new; a study that was broken off goes on there.
        out: the folder to write: cost.csv, cost.json, and as `write_study`.

    Returns:
        A row a stage: seconds, joules, grams of CO2 equivalents.

    Raises:
        ConfigError: codecarbon is not installed, the country is unknown, or the folder `checkpoint` holds
            something else; or as a stage.
        DataError: as a stage.
    """
    meter = Meter(params.study.cost.country)
    kept_splits = splits.read_text(encoding="utf-8") if splits.is_file() else ""
    made_from = [params.model_dump(mode="json"), kept_splits]
    if checkpoint.exists() and any(checkpoint.iterdir()) and not (checkpoint / "cost.json").is_file():
        raise ConfigError(
            f"--checkpoint {checkpoint}: holds something else; name a folder that does not exist"
        )
    kept = Kept(checkpoint / "cost.json", made_from=made_from)
    work = checkpoint / "data"
    stages = _stages(params, work, splits=splits, key=key)
    kept.get("begun", lambda: True)  # so that the folder is known to be the study's
    costs = [
        {"stage": stage} | kept.get(stage, partial(_measure, meter, run, work))
        for stage, run in stages.items()
    ]
    table = pd.DataFrame(costs)
    found = _describe(params, work, table)
    _write(out, table, found)
    shutil.rmtree(work)
    kept.forget()
    checkpoint.rmdir()
    return table


def _stages(params: "Params", work: Path, *, splits: Path, key: Path) -> dict[str, Callable[[], None]]:
    """The seven, from files to files, in their order."""
    images, views, activations, tails, model, evaluation, bundle = (
        work / name for name in ("ingest", "augment", "embed", "finetune", "calibrate", "evaluate", "export")
    )
    backbone, seed = params.backbone, params.seed
    # what misses a gate has its cost, too; and its card cannot tell it yet
    leave = ExportConfig(gates=GatesConfig(auroc_macro=0, balanced_accuracy=0), cost=None)
    return {
        "ingest": partial(ingest, params.ingest, seed=seed, out=images, splits=splits, key=key),
        "augment": partial(
            augment, params.augment, input_size=backbone.input_size, seed=seed, images=images, out=views
        ),
        "embed": partial(embed, params.embed, backbone=backbone, views=views, out=activations),
        "finetune": partial(
            finetune,
            params.finetune,
            backbone=backbone,
            seed=seed,
            images=images,
            activations=activations,
            out=tails,
            checkpoint=work / _STATE,
        ),
        "calibrate": partial(
            calibrate, params.calibrate, backbone=backbone, images=images, tails=tails, out=model
        ),
        "evaluate": partial(evaluate, params.evaluate, seed=seed, images=images, model=model, out=evaluation),
        "export": partial(export, leave, model=model, evaluation=evaluation, out=bundle),
    }


def _measure(meter: Meter, run: Callable[[], None], work: Path) -> dict[str, float]:
    for path in work.glob(f"{_STATE.stem}-*"):
        path.unlink()  # a training that goes on would take less than it takes
    return meter.measure(run)[1]._asdict()


def _describe(params: "Params", work: Path, table: pd.DataFrame) -> dict[str, Any]:
    """What cost.json holds."""
    lineage = json.loads((work / "finetune" / "lineage.json").read_text(encoding="utf-8"))
    metrics = json.loads((work / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    auroc = metrics["auroc"]["macro"]
    epochs = len(pd.read_csv(work / "finetune" / "history.csv"))
    images = sum(lineage["images"]["train"].values())
    size = Size(**lineage["size"])
    graph = (work / "calibrate" / "model.onnx").read_bytes()
    total = table[["seconds", "joules", "grams"]].sum().to_dict()
    return {
        "model_sha256": hashlib.sha256(graph).hexdigest(),
        "country": params.study.cost.country,
        "stages": table.set_index("stage").to_dict("index"),
        "total": total,
        "size": lineage["size"],
        "auroc": auroc,
        "joules_per_point": joules_per_point(total["joules"], auroc["value"]),
        "work": training_work(
            size, images=images, views=params.augment.views, epochs=epochs * params.finetune.ensemble
        ),
    }


def training_work(size: Size, *, images: int, views: int, epochs: int) -> dict[str, float]:
    """Multiply-adds of a training as it was, and of one in which all layers learn for as many epochs.

    Args:
        size: of the network.
        images: to learn from.
        views: of each, that the trunk sees once.
        epochs: that the tail learned for.
    """
    frozen = size.multiply_adds - size.trained_multiply_adds
    embedding = float(images * views * frozen)
    tail = float(TRAINING * images * epochs * size.trained_multiply_adds)
    return {
        "embed": embedding,
        "finetune": tail,
        "whole": float(TRAINING * images * epochs * size.multiply_adds),
    }


def _write(out: Path, table: pd.DataFrame, found: Mapping[str, Any]) -> None:
    write_tables({"cost": table}, out)
    with atomic_path(out / "cost.json") as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    figure, verdict = cost_figure(table), verdict_on(found)
    page = render_cost(found, figure, verdict=verdict)
    write_study(out, page, figure, Section("What the model costs", verdict, "energy and time of each stage"))
