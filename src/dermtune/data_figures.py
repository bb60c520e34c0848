"""Figures of the data: how many images of what, whom they are of, and how the classes differ in colour."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dermtune.figures import BLUE, GREEN, VERMILION, note_below, styled
from dermtune.table import SPLITS

_SPLIT_COLOURS = (BLUE, VERMILION, GREEN)
_CHANNELS = (("red", VERMILION, "s", -0.22), ("green", GREEN, "o", 0.0), ("blue", BLUE, "D", 0.22))
_BAND = 5  # years


@styled
def class_balance(counts: pd.DataFrame, *, wanted: Mapping[str, float] | None = None) -> Figure:
    """Images of each class, and how its lesions are shared out to the splits.

    Args:
        counts: as `data_card.balance` gives it.
        wanted: the share of the lesions that each split is to have; None: the source has splits of its own.
    """
    images, lesions = (
        counts.pivot_table(index="label", columns="split", values=name, sort=False, aggfunc="sum")
        .reindex(columns=list(SPLITS), fill_value=0)
        .fillna(0)
        for name in ("images", "lesions")
    )
    order = images.sum(axis=1).sort_values(kind="stable").index
    images, lesions = images.loc[order], lesions.loc[order]
    shares = lesions.div(lesions.sum(axis=1), axis=0)
    figure = Figure(figsize=(9.6, 1.7 + 0.34 * len(order)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(order))
    for axes, table in ((left, images), (right, shares)):
        start = np.zeros(len(order))
        for split, colour in zip(SPLITS, _SPLIT_COLOURS, strict=True):
            width = table[split].to_numpy(float)
            axes.barh(places, width, 0.64, left=start, color=colour, edgecolor="white", label=split)
            start += width
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    totals = images.sum(axis=1).to_numpy(int)
    for place, total in zip(places, totals, strict=True):
        left.text(total, place, f" {total:,}", va="center", fontsize=8)
    left.set(title="Images", xlim=(0, 1.18 * totals.max()))
    left.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    left.set_yticks(places, list(order))
    right.set(title="Share of the class's lesions in each split", xlim=(0, 1))
    right.xaxis.set_major_formatter(PercentFormatter(1))
    for border in np.cumsum([wanted[split] for split in SPLITS])[:-1] if wanted else ():
        right.axvline(border, color="black", linestyle="--", linewidth=1)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper right", ncols=len(SPLITS), fontsize=8)
    dashed = " Dashed: the shares wanted." if wanted else ""
    note_below(figure, f"n = {totals.sum():,} images of {int(lesions.to_numpy().sum()):,} lesions.{dashed}")
    return figure


@styled
def colours(table: pd.DataFrame) -> Figure:
    """Mean red, green and blue of the images of each class: the median, and where nine in ten of them lie.

    Args:
        table: the image table.
    """
    classes = [str(label) for label in sorted(table["label"].unique(), reverse=True)]
    figure = Figure(figsize=(7.2, 1.4 + 0.5 * len(classes)), layout="constrained")
    axes = figure.add_subplot()
    for channel, colour, marker, shift in _CHANNELS:
        by_class = table.groupby("label")[channel]
        low, middle, high = (by_class.quantile(at).loc[classes].to_numpy(float) for at in (0.05, 0.5, 0.95))
        places = np.arange(len(classes)) - shift
        axes.hlines(places, low, high, color=colour, linewidth=1.4)
        axes.plot(middle, places, color=colour, marker=marker, markersize=5, linestyle="", label=channel)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(
        title="Colour of the images, by class", xlabel="mean of an image, 0 (dark) to 255", xlim=(0, 255)
    )
    axes.set_ylim(-0.6, len(classes) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=8)
    note_below(
        figure, f"n = {len(table):,} images. Marks: median; lines: from the 5th to the 95th percentile."
    )
    return figure


@styled
def ages(table: pd.DataFrame) -> Figure:
    """Images by the age of the person, in bands of five years.

    Args:
        table: the image table.
    """
    known = table["age"].dropna().to_numpy(float)
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axes = figure.add_subplot()
    bands = 1 + int(max(99, known.max(initial=0)) // _BAND)
    axes.hist(known, bins=(_BAND * np.arange(bands + 1)).tolist(), color=BLUE, edgecolor="white")
    axes.set(title="Age", xlabel="years", ylabel="images", xlim=(0, _BAND * bands))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.grid(visible=False, axis="x")
    note = f"n = {len(known):,} images with an age; {len(table) - len(known):,} without one."
    if len(known):
        middle = float(np.median(known))
        axes.axvline(middle, color="black", linestyle="--", linewidth=1)
        note += f" Dashed: the median, {middle:g} years."
    note_below(figure, note)
    return figure
