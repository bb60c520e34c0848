"""What transfer bought, for people: learning curves in one figure, and a page around them."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from dermtune.figures import note_below, styled, to_png
from dermtune.page import render_page
from dermtune_bundle.manifest import NOTICE

# Okabe and Ito's colours; what was trained before is drawn whole, what was not is dashed.
_COLOURS: Final = ("#6B7280", "#999999", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73")


@styled
def transfer_curves(
    history: pd.DataFrame, titles: Mapping[str, str], *, pretrained: Sequence[str], note: str
) -> Figure:
    """AUROC of each network by epoch on all lesions, and by lesions at the end of training.

    Args:
        history: a row an epoch: network, share, lesions, seed, epoch, val_auroc; the mean over seeds is drawn,
            in a band from the least to the greatest.
        titles: of the networks, in their order.
        pretrained: those that were trained before.
        note: what n is.
    """
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    by_epoch, by_lesions = figure.subplots(1, 2, sharey=True)
    ends = history.groupby(["network", "share", "seed"], as_index=False).last()
    whole = history[history["share"] == history["share"].max()]
    for (name, title), colour in zip(titles.items(), _COLOURS, strict=True):
        line = "-" if name in pretrained else "--"
        own = whole[whole["network"] == name]
        _band(by_epoch, own["epoch"] + 1, own["val_auroc"], colour, line, title)
        own = ends[ends["network"] == name]
        _band(by_lesions, own["lesions"], own["val_auroc"], colour, line, title)
    by_epoch.set(title="On all lesions, by epoch", xlabel="epoch", ylabel="AUROC, macro, on validation")
    by_lesions.set(title="At the end of training, by lesions", xlabel="training lesions", xscale="log")
    by_lesions.set_xticks(sorted(ends["lesions"].unique()))
    by_lesions.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    by_lesions.xaxis.set_minor_locator(NullLocator())
    for axes in (by_epoch, by_lesions):
        axes.axhline(0.5, color="#D1D5DB", linewidth=1)
    figure.legend(*by_epoch.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    note_below(figure, note)
    return figure


def _band(
    axes: Axes, x: "pd.Series[float]", y: "pd.Series[float]", colour: str, line: str, title: str
) -> None:
    found = y.groupby(x.to_numpy()).agg(["mean", "min", "max"])
    places = found.index.to_numpy(float)
    axes.plot(places, found["mean"], line, color=colour, marker="o", markersize=3, label=title)
    axes.fill_between(places, found["min"], found["max"], color=colour, alpha=0.13, linewidth=0)


def render_transfer(networks: pd.DataFrame, curves: pd.DataFrame, figure: Figure, *, note: str) -> str:
    """The page.

    Args:
        networks: a row a network: name, title, parameters, unshared, trained, multiply_adds, seconds, joules.
        curves: as `transfer.summarize` gives it.
        figure: as `transfer_curves` draws it.
        note: what n is.
    """
    found = {(row.network, row.curve, row.measure): row for row in curves.itertuples()}
    values = {
        "networks": networks.to_dict("records"),
        "found": found,
        "png": to_png(figure),
        "note": note,
        "notice": NOTICE,
        "verdict": _verdict(found, {row.name: row.title for row in networks.itertuples(index=False)}),
    }
    return render_page("studies/transfer.html", values, amount=_amount)


def _verdict(found: Mapping[tuple[str, str, str], object], titles: Mapping[str, str]) -> str:
    """One sentence on the two that differ in nothing but what they knew beforehand."""
    known, unknown = (found[name, "lesions", "asymptote"] for name in ("whole", "untrained"))
    few, none = (found[name, "lesions", "start"] for name in ("whole", "untrained"))
    return (
        f"The same network, all of it trained: AUROC {known.value:.3f} from ImageNet's weights and"  # type: ignore[attr-defined]
        f" {unknown.value:.3f} from random ones on all lesions; {few.value:.3f} and {none.value:.3f} on the"  # type: ignore[attr-defined]
        " fewest."
    )


def _amount(count: float) -> str:
    """Three digits and a word: 4.65 million."""
    for size, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if count >= size:
            return f"{count / size:.3g}{word}"
    return f"{count:.3g}"
