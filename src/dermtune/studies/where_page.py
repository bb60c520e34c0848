"""Where the network looks, for people: measures in one figure, images in another, and a page around them."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dermtune.appearance import Mask
from dermtune.figures import BLUE, GREEN, GREY, VERMILION, note_below, styled, to_png
from dermtune.labels import CLASSES
from dermtune.page import render_page
from dermtune.studies.localisation import MEASURES, PRIORS, peak, stretch
from dermtune_bundle.manifest import NOTICE
from dermtune_bundle.pictures import thumbnail, to_jpeg

TITLES: Final = {
    "shown": "the map that clinicians see",
    "contrast": "the same, less the mean of all classes'",
    "grad_cam": "Grad-CAM, last layer",
    "finer": "HiResCAM, a finer layer",
    "occlusion": "occlusion",
    "untrained": "tail with random weights",
    "mean_mask": "blind: mean training lesion",
    "gaussian": "blind: bell in the middle",
    "best": "the best that the grid allows",
}
MEASURE_TITLES: Final = {
    "pointing": "Maximum in the lesion, share",
    "overlap": "Overlap with the lesion (IoU)",
    "energy": "Share of the map in the lesion",
}
_ABILITIES: Final = {
    "pointing": "at pointing into the lesion",
    "overlap": "at outlining it",
    "energy": "at keeping to it",
}
_SHOWN: Final = {
    "shown": "the map that clinicians see",
    "finer": "HiResCAM, finer layer",
    "occlusion": "occlusion",
}
_COLOURS: Final = {"untrained": VERMILION, "mean_mask": GREY, "gaussian": GREY, "best": GREEN}
_SIDE = 280  # pixels of an image on the sheet


@dataclass(frozen=True)
class Shown:
    """An image on the sheet."""

    image: NDArray[np.uint8]
    """(H, W, 3)."""
    mask: Mask
    """Where the lesion is, stretched over the image."""
    maps: Mapping[str, NDArray[np.float64]]
    """`shown`, `finer`, `occlusion`."""
    title: str


@dataclass(frozen=True)
class Tables:
    """What was measured."""

    methods: pd.DataFrame
    """As `localisation.compare_methods` gives it."""
    groups: pd.DataFrame
    """As `localisation.compare_groups` gives it."""
    shares: pd.DataFrame
    """As `agreement.summarize_agreement` gives it."""
    agreement: pd.DataFrame
    """As `agreement.measure_agreement` gives it."""


@styled
def localisation_figure(methods: pd.DataFrame, *, note: str) -> Figure:
    """Three measures of each method with their intervals; a line where the mean training lesion is.

    Args:
        methods: as `localisation.compare_methods` gives it.
        note: what n is and how the intervals were made.
    """
    names = list(methods["method"].unique())
    figure = Figure(figsize=(10.4, 1.5 + 0.34 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, measure in zip(panels, MEASURES, strict=True):
        own = methods[methods["measure"] == measure].set_index("method")
        axes.axvline(own.loc["mean_mask", "value"], color=GREY, linewidth=1, linestyle="--")
        for place, name in enumerate(names):
            value, low, high = own.loc[name, ["value", "low", "high"]].astype(float)
            colour = _COLOURS.get(name, BLUE)
            axes.plot([low, high], [place, place], color=colour, linewidth=1.4)
            axes.plot(value, place, color=colour, marker="s" if name in PRIORS else "o", markersize=4.5)
        axes.set(title=MEASURE_TITLES[measure], xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    images = methods[methods["measure"] == "pointing"].set_index("method")["images"]
    panels[0].set_yticks(range(len(names)), [f"{TITLES[name]}  (n = {images[name]:,})" for name in names])
    note_below(figure, fill(note, 170))
    return figure


@styled
def contact_sheet(shown: Sequence[Shown]) -> Figure:
    """Images in rows: with the lesion's outline, and each map over it; a cross where a map is highest."""
    figure = Figure(figsize=(10.4, 2.2 * len(shown)), layout="constrained")
    for one, row in zip(shown, figure.subplots(len(shown), 1 + len(_SHOWN), squeeze=False), strict=True):
        small = thumbnail(one.image, _SIDE)
        _picture(row[0], small, one.mask)
        row[0].set_title(one.title, fontsize=7.5)
        for axes, (name, title) in zip(row[1:], _SHOWN.items(), strict=True):
            _picture(axes, _heated(small, one.maps[name]), one.mask)
            height, width = small.shape[:2]
            down, across = peak(one.maps[name])
            place = across * width - 0.5, down * height - 0.5
            axes.plot(*place, "x", color="white", markersize=9, markeredgewidth=2)
            axes.set_title(title, fontsize=7.5)
    return figure


def _heated(image: NDArray[np.uint8], activation: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The image in grey, and over it what of a map is positive, from dark red to yellow.

    To darken what does not speak for the class, as overlays do, would hide where a dark lesion is lit.
    """
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    heat = stretch(activation)
    heat = heat / max(float(heat.max()), 1e-9)
    lit = np.asarray(Image.fromarray(heat).resize(image.shape[1::-1], Image.Resampling.BILINEAR))
    colours = 255 * mpl.colormaps["hot"](0.25 + 0.6 * lit)[..., :3]
    share = 0.65 * np.sqrt(np.clip(lit, 0, 1))[..., None]
    mixed: NDArray[np.uint8] = ((1 - share) * grey + share * colours).astype(np.uint8)
    return mixed


def _picture(axes: Axes, image: NDArray[np.uint8], mask: Mask) -> None:
    height, width = image.shape[:2]
    axes.imshow(image)
    across, down = (
        (np.arange(count) + 0.5) / count * side
        for count, side in zip(mask.shape[::-1], (width, height), strict=True)
    )
    axes.contour(across, down, mask, levels=[0.5], colors=["#56B4E9"], linewidths=1.3)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_axis_off()


def render_where(
    tables: Tables,
    figure: Figure,
    sheets: Mapping[str, Figure],
    *,
    note: str,
    verdict: str,
    window: float,
    least: float,
) -> str:
    """The page.

    Args:
        tables: what was measured.
        figure: as `localisation_figure` draws it.
        sheets: by heading, as `contact_sheet` draws them.
        note: what n is.
        verdict: as `verdict_on` gives it.
        window: side of what covers an image, as a share of the image's.
        least: rank correlation of maps that agree.
    """
    shares, agreement = tables.shares, tables.agreement
    values = {
        "methods": _by_measure(tables.methods, "method"),
        "titles": TITLES,
        "class_titles": {known.name: known.title for known in CLASSES},
        "groups": _by_measure(tables.groups[tables.groups["method"] == "shown"], "group"),
        "shares": _by_measure(shares, "group"),
        "apart": _records(agreement[~agreement["agree"]]),
        "png": to_png(figure),
        "sheets": {title: _to_jpeg(sheet) for title, sheet in sheets.items()},
        "note": note,
        "notice": NOTICE,
        "verdict": verdict,
        "window": window,
        "least": least,
    }
    return render_page("studies/where.html", values)


def _by_measure(table: pd.DataFrame, key: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows by what is measured and how, None where there is no value."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in _records(table):
        found.setdefault(row[key], {})[row["measure"]] = row
    return found


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    shown = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in shown.to_dict("records")]


def _to_jpeg(figure: Figure) -> bytes:
    return to_jpeg(np.asarray(Image.open(io.BytesIO(to_png(figure))).convert("RGB")))


def verdict_on(methods: pd.DataFrame, shares: pd.DataFrame) -> str:
    """Is the map that clinicians see better than one that never looks, and do two methods agree?

    Args:
        methods: as `localisation.compare_methods` gives it.
        shares: as `agreement.summarize_agreement` gives it.
    """
    found = _by_measure(methods, "method")
    hits = {name: _percent(found[name]["pointing"]) for name in ("shown", "mean_mask", "untrained")}
    agree = _by_measure(shares, "group")["all"]["agree"]
    judged = ", ".join(f"{_judge(found['shown'][measure])} {what}" for measure, what in _ABILITIES.items())
    return (
        f"The map that clinicians see is highest inside the lesion on {hits['shown']} of the images. A map"
        f" that never looks at the image, the mean of the training lesions, reaches {hits['mean_mask']}; a"
        f" network with random weights {hits['untrained']}. Against the blind map, the network's is {judged}."
        f" Grad-CAM and occlusion agree on {_percent(agree)} of {agree['images']} images."
    )


def _judge(row: Mapping[str, Any]) -> str:
    over, low, high = (row[f"over_mean_mask{end}"] for end in ("", "_low", "_high"))
    if low is None or high is None or low <= 0 <= high:
        return "not told apart"
    return f"{'better' if over > 0 else 'worse'} (by {abs(over):.2f})"


def _percent(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "(no image has such a map)"
    if row["low"] is None:
        return f"{row['value']:.0%}"
    return f"{row['value']:.0%} [{row['low']:.0%} to {row['high']:.0%}]"
