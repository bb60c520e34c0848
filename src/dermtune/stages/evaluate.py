"""evaluate: the test split's original files and the deployable graph in; metrics, figures and report out.

The only reader of the test split. What it measures is the very file that export ships. A finished bundle is
measured on another source's images in the same way.
"""

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from dermtune.appearance import MASKS
from dermtune.config import Config
from dermtune.csv_tables import write_tables
from dermtune.disk import require_room
from dermtune.duplicates import find_duplicates
from dermtune.errors import DataError
from dermtune.fingerprint import file_sha256
from dermtune.goals import require_target
from dermtune.leakage import EMBEDDINGS, PRINTS, look_alikes, require_no_leakage
from dermtune.memory import Memory
from dermtune.shards import PackedImages, open_array, places
from dermtune.splits import group_images, group_names, join_pairs
from dermtune.stages.ingest import IngestConfig, read_source
from dermtune.table import check_table, read_table, table_sha256
from dermtune_bundle.bundle import MODEL, Bundle
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract

log = logging.getLogger(__name__)


class EvaluateConfig(Config):
    """How the model is judged."""

    bootstrap: Annotated[int, Field(ge=100, le=100_000)]
    """Draws of lesions behind each 95% interval."""
    prevalence: dict[Annotated[str, AfterValidator(require_target)], Annotated[float, Field(gt=0, lt=1)]]
    """By an operating point's target: its share of the lesions where the model is to be used."""


def evaluate(config: EvaluateConfig, *, seed: int, images: Path, model: Path, out: Path) -> None:
    """Measure the deployable graph on the test split, from the original files.

    Raises:
        DataError: the images or the model are missing or damaged, or the model is of other classes or was
            trained on another image table.
        ImageError: an image can't be read.
    """
    from dermtune.inference import read_model

    require_no_leakage(images)
    table = read_table(images / "images.parquet")
    graph, contract = read_model(model)
    if contract.lineage.get("images_sha256") != table_sha256(images):
        # another split: what is test here may have been training there
        raise DataError(f"{model}: trained on another image table than that of {images}; re-run calibrate")
    _measure(
        config,
        graph,
        contract,
        table,
        images=images,
        masks=open_array(images / MASKS, rows=len(table)),
        quarantined=_quarantined(images),
        known=open_array(model / EMBEDDINGS),
        seed=seed,
        sha256=file_sha256(model / MODEL),
        out=out,
    )


def evaluate_bundle(
    config: EvaluateConfig, *, source: IngestConfig, seed: int, bundle: Path, out: Path
) -> None:
    """Measure a finished bundle on all images of a source that it was not trained on: external validation.

    Args:
        config: how it is judged.
        source: where the images come from; its split is not used.
        seed: of the bootstrap.
        bundle: the folder that `export` wrote.
        out: the folder to write.

    Raises:
        BundleError: the bundle is damaged.
        SourceError: the source is not laid out as expected, or too many of its files are unusable.
        DataError: a class is none of the bundle's, or the bundle was trained on this very source.
    """
    opened = Bundle.open(bundle, threads=1)
    learned = set(str(opened.manifest.lineage.get("source")).split(", "))
    if known := sorted(learned & {source.source, *source.parts}):
        raise DataError(
            f"{bundle}: trained on images of {', '.join(known)}; it would look better on them than it is. Its"
            " figures on those that it has not seen are in its model card"
        )
    with TemporaryDirectory() as folder:
        images = Path(folder)
        table, quarantined, _ = read_source(source, seed=seed, out=images, memory=Memory({}, images))
        pairs = find_duplicates(open_array(images / PRINTS, rows=len(table)))
        copies = join_pairs(len(table), ((pair.first, pair.second) for pair in pairs))
        groups = group_names(group_images(table, copies.tolist()))
        table = check_table(
            table.drop(columns=["given", "file", "linked"]).assign(split="test", group_id=groups)
        )
        log.info("%d images of %s: %d set aside", len(table), source.source, len(quarantined))
        _measure(
            config,
            opened.graph,
            opened.manifest,
            table,
            images=images,
            masks=open_array(images / MASKS, rows=len(table)),
            quarantined=quarantined,
            known=None,
            seed=seed,
            sha256=file_sha256(bundle / MODEL),
            out=out,
        )


def _measure(
    config: EvaluateConfig,
    graph: Graph,
    contract: Contract,
    table: pd.DataFrame,
    *,
    images: Path,
    masks: NDArray[np.uint8],
    quarantined: pd.DataFrame,
    known: NDArray[np.float16] | None,
    seed: int,
    sha256: str,
    out: Path,
) -> None:
    """Measure the graph on the test images of the table, and write what there is to see."""
    from dermtune.figures import to_png
    from dermtune.inference import look_at_images, probe_images
    from dermtune.metrics import headline, summarize
    from dermtune.report import (
        draw_figures,
        evaluation_of,
        further_metrics,
        most_confident_alarms,
        most_confident_misses,
        most_sensitive_of_each_target,
        render,
    )

    is_test = (table["split"] == "test").to_numpy(bool)
    test = table[is_test].reset_index(drop=True)
    classes = [known.name for known in contract.classes]
    if test.empty or (unknown := sorted(set(test["label"]) - set(classes))):
        what = "is empty" if test.empty else f"has classes that the model lacks: {', '.join(unknown[:5])}"
        raise DataError(f"the test split {what}; map labels (ingest.label_map), or train on such images")
    require_room("evaluate", 0, out)  # a report and tables: megabytes
    packed, found = PackedImages(images), places(test)

    def look(row: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        image = packed.decode(found[row])
        return image, graph.run(image).activation_map

    seen = look_at_images(graph, packed, found, description="evaluate")
    alike = pd.DataFrame(columns=["test", "other"])
    if known is not None:
        frozen = seen.frozen(known.shape[1])
        alike = look_alikes(table, open_array(images / PRINTS), frozen, known.astype(np.float32))
        if len(alike):
            first, second = alike.iloc[0][["test", "other"]]
            message = "warning: %d pairs of a test image and another look alike, such as %s and %s: see %s"
            log.warning(message, len(alike), first, second, out / "look_alikes.csv")
    given = [mask if has else None for mask, has in zip(masks[is_test], test["has_mask"], strict=True)]
    probed = probe_images(
        graph, packed, found, masks=given, activations=seen.activations, description="shortcuts"
    )
    evaluation = evaluation_of(
        contract,
        test,
        seen,
        probed,
        is_external=known is None,
        draws=config.bootstrap,
        rng=np.random.default_rng(seed),
        prevalence=config.prevalence,
    )
    metrics = summarize(evaluation.predictions, contract.operating_points, evaluation.measured)
    metrics |= further_metrics(evaluation)
    metrics |= {"model_sha256": sha256, "prevalence": config.prevalence}
    pngs = {name: to_png(figure) for name, figure in draw_figures(evaluation).items()}
    misses = {
        point.name: most_confident_misses(evaluation, point, list(test["image_id"]), look)
        for point in most_sensitive_of_each_target(contract.operating_points)
    }
    alarms = {
        point.name: most_confident_alarms(evaluation, point, list(test["image_id"]), look)
        for point in contract.operating_points
        if point.name in misses
    }
    page = render(
        evaluation,
        metrics,
        table,
        pngs=pngs,
        misses=misses,
        alarms=alarms,
        quarantined=quarantined,
        ingested=_summary(images),
        alike=alike,
    )

    with atomic_path(out / "predictions.parquet") as temporary:
        scores = pd.DataFrame(seen.probabilities, columns=classes)
        pd.concat([test[["image_id", "lesion_id", "label"]], scores], axis=1).to_parquet(
            temporary, index=False
        )
    write_tables(evaluation.tables() | {"look_alikes": alike}, out)
    for name, png in pngs.items():
        _write(out / f"{name}.png", png)
    for name, content in (("metrics.json", metrics), ("headline.json", headline(metrics))):
        _write(out / name, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    _write(out / "report.html", page.encode())
    log.info("%d test images measured; the report is %s", len(test), out / "report.html")


def _quarantined(images: Path) -> pd.DataFrame:
    path = images / "quarantine.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable table; re-run ingest") from error


def _summary(images: Path) -> dict[str, Any]:
    """What ingest counted, and which columns tell the diagnosis; nothing of an external source."""
    try:
        counted: dict[str, Any] = json.loads((images / "summary.json").read_text(encoding="utf-8"))
        told = pd.read_csv(images / "metadata.csv")
    except (OSError, ValueError):
        return {}
    return {"copies": counted.get("copies", 0), "told": told.to_dict("records")}


def _write(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
