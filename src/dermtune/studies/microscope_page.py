"""What the layers respond to, for people: a map of images to click on, and what excites each layer.

The page has no script: points are links, and a card is shown while it is the target of one (CSS `:target`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dermtune.figures import BLUE, GREY, VERMILION, note_below, styled, to_png
from dermtune.page import render_page
from dermtune.studies.microscope_views import Given, LayerView, Map
from dermtune_bundle.manifest import NOTICE

_SIDE: Final = 600  # of the map, in units of its own


@styled
def microscope_figure(
    shown: Map, depths: pd.DataFrame, model: dict[str, float | None], *, note: str
) -> Figure:
    """The map, and how well the best single channels of each layer tell the classes.

    Args:
        shown: the map.
        depths: a row a layer: layer, frozen, auroc, low, high.
        model: auroc, low and high of the whole network.
        note: what n is.
    """
    figure = Figure(figsize=(10.4, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_map(left, shown)
    _draw_depths(right, depths, model)
    note_below(figure, note)
    return figure


def _draw_map(axes: Axes, shown: Map) -> None:
    places = shown.places(1)
    labels = np.array([case.label for case in shown.cases])
    for known in shown.classes:
        own = places[labels == known.name]
        marker = "^" if known.malignant else "o"
        title = f"{known.title}{', malignant' if known.malignant else ''} ({len(own)})"
        axes.scatter(
            own[:, 0],
            own[:, 1],
            s=22,
            marker=marker,
            color=shown.colors[known.name],
            alpha=0.85,
            label=title,
            linewidth=0,
        )
    axes.invert_yaxis()
    axes.set(
        title="Validation images, alike ones near each other (t-SNE)", xticks=[], yticks=[], aspect="equal"
    )
    axes.spines[:].set_visible(False)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2)


def _draw_depths(axes: Axes, depths: pd.DataFrame, model: dict[str, float | None]) -> None:
    along = np.arange(len(depths))
    values = depths[["auroc", "low", "high"]].astype(float).to_numpy().T
    below = np.clip([values[0] - values[1], values[2] - values[0]], 0, None)
    axes.errorbar(
        along,
        values[0],
        yerr=below,
        color=BLUE,
        marker="o",
        markersize=5,
        capsize=2,
        label="best single channel of each class",
    )
    if model["auroc"] is not None:
        axes.axhline(model["auroc"], color=VERMILION, linestyle="--", linewidth=1.2, label="whole network")
    axes.axhline(0.5, color="#D1D5DB", linewidth=1)
    frozen = int(depths["frozen"].sum())
    if 0 < frozen < len(depths):
        axes.axvline(frozen - 0.5, color=GREY, linestyle=":", linewidth=1)
        axes.text(frozen - 0.6, 0.47, "frozen", ha="right", fontsize=8, color=GREY)
        axes.text(frozen - 0.4, 0.47, "trained", ha="left", fontsize=8, color=GREY)
    axes.set_xticks(along, depths["layer"], rotation=40, ha="right", rotation_mode="anchor")
    axes.set(
        title="How well one channel tells a class, by depth",
        ylabel="AUROC on validation, mean over classes",
        ylim=(0.45, 1.01),
    )
    axes.legend(fontsize=8, loc="upper left")


def render_microscope(
    shown: Map,
    layers: Sequence[LayerView],
    given: Given,
    *,
    agreement: pd.DataFrame,
    depths: pd.DataFrame,
    model: dict[str, float | None],
    filters: Sequence[bytes],
    note: str,
    verdict: str,
) -> str:
    """The page.

    Args:
        shown: the map.
        layers: from the image to the classifier.
        given: the image that is followed.
        agreement: as `neighbors.measure_agreement` gives it.
        depths: as of `microscope_figure`.
        model: the same.
        filters: PNGs of the first convolution's.
        note: what n is.
        verdict: as `verdict_on` gives it.
    """
    values = {
        "cases": shown.cases,
        "places": shown.places(_SIDE).round(1).tolist(),
        "classes": shown.classes,
        "kinds": {known.name: number for number, known in enumerate(shown.classes)},
        "titles": {known.name: known.title for known in shown.classes},
        "counts": pd.Series([case.label for case in shown.cases]).value_counts().to_dict(),
        "colors": shown.colors,
        "thumbnails": shown.thumbnails,
        # a picture that several cards show is in the page once
        "numbers": {name: number for number, name in enumerate(shown.thumbnails)},
        "side": _SIDE,
        "layers": layers,
        "given": given,
        "agreement": agreement.astype(object).where(agreement.notna(), None).to_dict("records"),
        "depths": to_png(_depth_figure(depths, model, note)),
        "filters": filters,
        "note": note,
        "notice": NOTICE,
        "verdict": verdict,
    }
    return render_page("studies/microscope.html", values)


@styled
def _depth_figure(depths: pd.DataFrame, model: dict[str, float | None], note: str) -> Figure:
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    _draw_depths(figure.add_subplot(), depths, model)
    note_below(figure, note)
    return figure


def verdict_on(
    agreement: pd.DataFrame, depths: pd.DataFrame, model: dict[str, float | None], *, neighbors: int
) -> str:
    """Two sentences: do neighbours share a class, and how does what single channels tell grow with depth?"""
    means = agreement[agreement["label"] == "all"].to_dict("records")
    whole, frozen = (next(row for row in means if row["space"] == space) for space in ("whole", "frozen"))
    first, *_, last = depths.to_dict("records")
    return (
        f"Of the {neighbors} training lesions nearest to an image, {_share(whole)} are of its class, on the"
        f" mean over classes; by chance {whole['chance']:.0%} would be, and by what the frozen layers see"
        f" alone {_share(frozen)} are. The best single channel for a class reaches an AUROC of {_area(first)}"
        f" in the {first['layer']} and {_area(last)} in the {last['layer']}; the whole network"
        f" {_area(model)}."
    )


def _share(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["low"]):
        return f"{row['share']:.0%}"
    return f"{row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _area(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["auroc"]):
        return "nothing that can be measured"
    text = f"{row['auroc']:.2f}"
    return text if pd.isna(row["low"]) else f"{text} [{row['low']:.2f}, {row['high']:.2f}]"
