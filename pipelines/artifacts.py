"""What the page of a run shows: metrics beside the champion's, plots, and where report and bundle are."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.logging import get_run_logger

from dermtune.page import data_uri
from dermtune.registry import Registry
from dermtune_bundle.bundle import Bundle
from dermtune_bundle.errors import DermtuneError

PLOTS = ("roc", "confusion", "reliability", "subgroups")


def publish_results(project: Path, registry: str) -> None:
    """Show what evaluate measured, of a project whose stages are up to date.

    Args:
        project: the folder of dvc.yaml.
        registry: where the champion is; where there is none, the metrics stand alone.
    """
    evaluation, bundle = project / "data/evaluate", project / "data/export"
    if not (evaluation / "metrics.json").exists():
        return
    metrics = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    create_markdown_artifact(
        key="metrics",
        description="The test split, read once through the deployable graph",
        markdown=f"{metrics_table(metrics, _metrics_of_champion(registry))}\n{_images(project)}"
        f"Report: `{evaluation / 'report.html'}`  \nBundle: `{bundle}`\n",
    )
    pictures = [_picture(path) for name in PLOTS if (path := evaluation / f"{name}.png").exists()]
    if pictures:
        # One page of pictures: an image artifact would show the whole of its address below each.
        create_markdown_artifact(key="plots", description="Of the test split", markdown="\n\n".join(pictures))
    links = {"report": evaluation / "report.html", "bundle": bundle}
    for key, path in links.items():
        if path.exists():
            what = f"The {key}, on the machine that made it"
            create_link_artifact(path.as_uri(), key=key, link_text=str(path), description=what)


def _picture(path: Path) -> str:
    return f"![{path.stem}]({data_uri(path.read_bytes(), 'png')})"


def _images(project: Path) -> str:
    """How many came in and how many were set aside: nothing is lost in silence."""
    summary = project / "data/ingest/summary.json"
    if not summary.exists():
        return ""
    counts = json.loads(summary.read_text(encoding="utf-8"))
    kept, aside = counts["kept"], counts["quarantined"]
    where = summary.with_name("quarantine.parquet")
    return f"Images: {counts['read']} read, {kept} kept, {aside} set aside; the reasons are in `{where}`  \n"


def metrics_table(metrics: Mapping[str, Any], champion: Mapping[str, Any] | None) -> str:
    """The headline metrics as a Markdown table, with the difference to a champion's, if there is one.

    The champion's were measured on its own test split: whether a difference is more than chance, a paired
    comparison tells.
    """
    from dermtune.report import headline_metrics, with_interval  # noqa: PLC0415 - it loads what draws figures

    def by_name(values: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The name of a rate holds its threshold, which differs between models."""
        return {label.partition(" ≥ ")[0]: metric for label, metric in headline_metrics(values)}

    before = by_name(champion) if champion else {}
    heads = ["metric", "value", *(["champion", "difference"] if champion else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for label, metric in headline_metrics(metrics):
        cells = [label, with_interval(metric)]
        if champion:
            other = before.get(label.partition(" ≥ ")[0])
            cells.append(with_interval(other) if other else "")
            values = (metric["value"], other and other["value"])
            cells.append("" if None in values else f"{values[0] - values[1]:+.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _metrics_of_champion(registry: str) -> Mapping[str, Any] | None:
    try:
        bundles = Registry(registry)
        if (version := bundles.champion()) is None:
            return None
        with TemporaryDirectory() as folder:
            return Bundle.open(bundles.fetch(version, Path(folder, "bundle.zip"))).manifest.metrics
    except (DermtuneError, OSError) as error:
        get_run_logger().warning("no champion to compare with: %s", error)
        return None
