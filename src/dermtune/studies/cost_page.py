"""What a model costs, for people: a figure by stage, and a page around it."""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
from matplotlib.figure import Figure

from dermtune.figures import BLUE, VERMILION, styled, to_png
from dermtune.page import amount, render_page
from dermtune_bundle.manifest import NOTICE

_WATT_HOUR: Final = 3600.0  # in joules


@styled
def cost_figure(costs: pd.DataFrame) -> Figure:
    """Time and energy of each stage.

    Args:
        costs: a row a stage: stage, seconds, joules.
    """
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, values, unit, colour in (
        (panels[0], costs["seconds"], "seconds", BLUE),
        (panels[1], costs["joules"] / _WATT_HOUR, "watt hours", VERMILION),
    ):
        bars = axes.barh(costs["stage"], values, color=colour)
        axes.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=8)
        axes.set(xlabel=unit)
        axes.margins(x=0.15)
    panels[0].invert_yaxis()
    return figure


def verdict_on(found: Mapping[str, Any]) -> str:
    """Two sentences on what cost.json holds."""
    total, work = found["total"], found["work"]
    said = f"Making this model took {duration(total['seconds'])} and {total['joules'] / _WATT_HOUR:.3g} Wh"
    if found["joules_per_point"] is not None:
        said += f", {amount(found['joules_per_point'])} joules for each hundredth of AUROC above guessing"
    more = work["whole"] / (work["embed"] + work["finetune"])
    return f"{said}. Training all layers for as many epochs would take {more:.1f} times the multiply-adds."


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def render_cost(found: Mapping[str, Any], figure: Figure, *, verdict: str) -> str:
    """The page.

    Args:
        found: what cost.json holds.
        figure: as `cost_figure` draws it.
        verdict: as `verdict_on` gives it.
    """
    values = {"found": found, "png": to_png(figure), "verdict": verdict, "notice": NOTICE}
    return render_page("studies/cost.html", values, amount=amount)
