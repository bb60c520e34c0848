"""What became of the images, for operators: one HTML page that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dermtune.drift import MEASURED, PROBABILITY, Finding, Recent, conclude
from dermtune.figures import Distribution, daily, distributions, named_shares, to_png
from dermtune.page import render_page
from dermtune.upkeep import MonitorConfig
from dermtune_bundle.files import atomic_path
from dermtune_bundle.manifest import NOTICE


@dataclass(frozen=True)
class Look:
    """One look at the recent images: what the page is about."""

    reference: pd.DataFrame
    recent: Recent
    findings: Sequence[Finding]
    config: MonitorConfig
    version: str
    """The champion's."""
    at: str
    """UTC, ISO 8601."""


def write_drift_report(look: Look, out: Path) -> None:
    """Write the page, whole or not at all."""
    with atomic_path(out) as temporary:
        temporary.write_text(render_drift(look), encoding="utf-8")


def render_drift(look: Look) -> str:
    """The page: counts and shares alone."""
    values = {
        "look": look,
        "alarms": [finding for finding in look.findings if finding.is_alarm],
        "too_few": any(finding.verdict == "too few to say" for finding in look.findings),
        "conclusion": conclude(look.findings, look.recent, look.config),
        "abstained": _share(look.recent.table),
        "usual": _share(look.reference),
        "figures": {name: to_png(figure) for name, figure in _figures(look).items()},
        "notice": NOTICE,
    }
    return render_page("drift.html", values)


def _figures(look: Look) -> dict[str, Figure]:
    """None of images that there are none of."""
    reference, recent = look.reference, look.recent.table
    if recent.empty or reference.empty:
        return {}
    note = f"Reference: n = {len(reference)} validation images; recent: n = {len(recent)} images."
    alarms = {finding.what for finding in look.findings if finding.is_alarm}
    titles = MEASURED | {
        str(column): f"probability of {str(column).removeprefix(PROBABILITY)}"
        for column in reference
        if str(column).startswith(PROBABILITY)
    }
    panels = [
        Distribution(
            title,
            reference[column].to_numpy(float),
            recent[column].to_numpy(float),
            title in alarms,
            logarithmic=column.startswith(PROBABILITY),
        )
        for column, title in titles.items()
    ]
    days = recent.groupby("day")["abstains"].agg(["size", "mean"]).reset_index()
    days.columns = pd.Index(["day", "images", "abstained"])
    named = sorted({*reference["predicted"], *recent["predicted"]})
    shares = [table["predicted"].value_counts(normalize=True) for table in (reference, recent)]
    usual, now = ({name: float(share.get(name, 0.0)) for name in named} for share in shares)
    return {
        "distributions": distributions(panels, note=f"{note} Probabilities on a logarithmic axis."),
        "named": named_shares(usual, now, note=note),
        "daily": daily(days, usual=_share(reference), note="Dashed: the reference's share. Days in UTC."),
    }


def _share(table: pd.DataFrame) -> float:
    return float(table["abstains"].mean()) if len(table) else 0.0
