"""The `monitor` flow: do the images of the last days look to the champion as those of its calibration did?"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from dermtune.drift import (
    REFERENCE,
    Finding,
    conclude,
    measure_drift,
    read_recent,
    read_reference,
    window_start,
)
from dermtune.drift_report import Look, write_drift_report
from dermtune.params import Params, read_params
from dermtune.registry import Registry
from dermtune_bundle.errors import DermtuneError
from pipelines.retries import patient_task
from pipelines.stage import as_own

DRIFTED = "Drifted"


@patient_task("monitor")
def look_at_recent(registry: str, scores: Path, params: Params, out: Path) -> tuple[str, list[Finding], str]:
    """Hold what the champion answered lately against its reference, and write the report.

    What comes back is fit for a page that others see: no row of an image.

    Returns:
        The champion's version, what was found, and that in one line.
    """
    config, now = params.monitor, datetime.now(UTC)
    bundles = Registry(registry)
    version = bundles.require_champion()
    reference = read_reference(bundles.beside(version, REFERENCE), name=f"{registry}: {version[:12]}")
    recent = read_recent(scores, version, since=window_start(now, config))
    findings = measure_drift(reference, recent, config, rng=np.random.default_rng(params.seed))
    at = now.isoformat(" ", timespec="minutes")[:16]
    write_drift_report(Look(reference, recent, findings, config, version, at), out)
    return version, findings, conclude(findings, recent, config)


@flow(name="monitor")
def monitor(
    registry: str = "registry",
    scores: Path = Path("scores.db"),
    out: Path = Path("monitor.html"),
    project: Path = Path(),
) -> State[None]:
    """Look for drift of inputs, embeddings, predictions and abstention, and report it.

    Ends as Drifted, of the type Completed, where there is an alarm: the run did what it should, and an
    automation can wait for the event `prefect.flow-run.Drifted`.

    Args:
        registry: folder, or place that fsspec reaches.
        scores: the SQLite file that the `score` flow writes.
        out: the report, an HTML page.
        project: the folder of params.yaml.
    """
    try:
        params = read_params(project / "params.yaml")
    except DermtuneError as error:
        return Failed(message=str(error))
    state = look_at_recent(registry, scores, params, out, return_state=True)
    if not state.is_completed():
        return as_own(state)
    version, findings, message = cast("tuple[str, list[Finding], str]", state.result())
    create_markdown_artifact(
        key="drift",
        description=message,
        markdown=f"{message}\n\n{_table(findings)}\nChampion: `{version}`  \nReport: `{out}`\n",
    )
    drifted = any(finding.is_alarm for finding in findings)
    return Completed(name=DRIFTED if drifted else "Completed", message=message)


def _table(findings: Sequence[Finding]) -> str:
    rows = "".join(
        f"| {one.kind} | {one.what} | {one.reference} | {one.recent} | {one.verdict} |\n" for one in findings
    )
    return f"| of | check | usual | now | verdict |\n| --- | --- | --- | --- | --- |\n{rows}"
