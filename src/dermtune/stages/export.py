"""export: the evaluated graph and its metrics in; the bundle out, unless the model misses a gate.

The bundle is what a clinicians' team gets, and all that it gets: `dermtune predict` needs nothing else.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from dermtune.config import Config
from dermtune.disk import require_room
from dermtune.errors import DataError, GateError
from dermtune.gates import GatesConfig, missed_gates
from dermtune.golden import golden_cases
from dermtune.model_card import card_page, model_card
from dermtune_bundle.bundle import Bundle, write_bundle
from dermtune_bundle.cases import CASE_FILES
from dermtune_bundle.errors import BundleError
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import NOTICE, SCHEMA_VERSION, Contract, Manifest

log = logging.getLogger(__name__)

_GOLDEN = 4  # images; each makes a bundle about 60 kB larger


class ExportConfig(Config):
    """When a model may leave."""

    gates: GatesConfig
    cost: str | None
    """File of `dermtune study cost`; the card tells what it holds, where it is of this very model."""


def export(config: ExportConfig, *, model: Path, evaluation: Path, out: Path) -> None:
    """Write the bundle of an evaluated model, its graph byte for byte, and open it as its users will.

    Args:
        config: the gates.
        model: the folder that `calibrate` wrote.
        evaluation: the folder that `evaluate` wrote.
        out: the bundle's folder.

    Raises:
        GateError: the model misses a gate, or a gate's metric is undefined; names each.
        DataError: an input is missing or damaged, or the metrics are another model's.
    """
    graph = _read(model / "model.onnx", stage="calibrate")
    contract = _parse_contract(_read(model / "model.json", stage="calibrate"), model / "model.json")
    path = evaluation / "metrics.json"
    try:
        metrics: dict[str, Any] = json.loads(_read(path, stage="evaluate"))
        misses = missed_gates(metrics, config.gates)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not the metrics that evaluate writes; re-run evaluate") from error
    if metrics.get("model_sha256") != hashlib.sha256(graph).hexdigest():
        raise DataError(f"{path}: measured on another model.onnx; re-run evaluate")
    if misses:
        raise GateError(f"not exported: {'; '.join(misses)}; train a better model or lower export.gates")
    require_room("export", len(graph), out)
    name = f"dermtune-{len(contract.classes)}-classes"
    cases, images = golden_cases(Graph(graph, threads=1), count=_GOLDEN)
    manifest = Manifest(
        **vars(contract),
        schema_version=SCHEMA_VERSION,
        name=name,
        notice=NOTICE,
        golden=cases,
        metrics=metrics,
    )
    card = model_card(manifest, cost=_cost(config, manifest.metrics["model_sha256"]))
    page = card_page(card, title=f"Model card: {name}")
    further = images | {name: (model / name).read_bytes() for name in CASE_FILES if (model / name).is_file()}
    write_bundle(out, model=graph, manifest=manifest, card=card, card_page=page, further=further)
    Bundle.open(out).check_golden()


def _cost(config: ExportConfig, model_sha256: str) -> dict[str, Any] | None:
    """What the study measured, if it did, and of this model; None: it did not."""
    path = Path(config.cost) if config.cost else None
    if path is None or not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        if found["model_sha256"] == model_sha256:
            return found
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: not what `dermtune study cost` writes; run it again") from error
    log.warning("%s is of another model; the card does not tell it. Run `dermtune study cost` again", path)
    return None


def _parse_contract(text: bytes, path: Path) -> Contract:
    try:
        return Contract.parse(text, source=str(path))
    except BundleError as error:
        raise DataError(f"{error}; re-run calibrate") from error


def _read(path: Path, *, stage: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; re-run {stage}") from error
