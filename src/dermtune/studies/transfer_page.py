"""What transfer bought, for people: learning curves in one figure, and a page around them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from dermtune.figures import note_below, styled, to_png
from dermtune.page import amount, render_page
from dermtune_bundle.manifest import NOTICE

# Okabe and Ito's colours; what was trained before is drawn whole, what was not is dashed.
_COLOURS: Final = ("#6B7280", "#999999", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#0072B2", "#009E73")


@styled
def transfer_curves(
    history: pd.DataFrame, titles: Mapping[str, str], *, pretrained: Sequence[str], note: str
) -> Figure:
    """AUROC of each network by epoch on all lesions, and by lesions at the end of training.

    Args:
        history: a row an epoch: network, share, lesions, seed, epoch, val_auroc. The mean over seeds is
            drawn, in a band from the least to the greatest.
        titles: of the networks, in their order.
        pretrained: those that were trained before.
        note: what n is.
    """
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    by_epoch, by_lesions = figure.subplots(1, 2, sharey=True)
    ends = history.groupby(["network", "share", "seed"], as_index=False).last()
    whole = history[history["share"] == history["share"].max()]
    for (name, title), colour in zip(titles.items(), _COLOURS, strict=True):
        style = {"color": colour, "linestyle": "-" if name in pretrained else "--", "label": title}
        _band(by_epoch, whole[whole["network"] == name].eval("epoch = epoch + 1"), "epoch", style)
        _band(by_lesions, ends[ends["network"] == name], "lesions", style)
    by_epoch.set(title="On all lesions, by epoch", xlabel="epoch", ylabel="AUROC, macro, on validation")
    by_lesions.set(title="At the end of training, by lesions", xlabel="training lesions", xscale="log")
    by_epoch.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_lesions.set_xticks(sorted(ends["lesions"].unique()))
    by_lesions.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    by_lesions.xaxis.set_minor_locator(NullLocator())
    for axes in (by_epoch, by_lesions):
        axes.axhline(0.5, color="#D1D5DB", linewidth=1)
    figure.legend(*by_epoch.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    note_below(figure, note)
    return figure


def _band(axes: Axes, rows: pd.DataFrame, along: str, style: Mapping[str, Any]) -> None:
    found = rows.groupby(along)["val_auroc"].agg(["mean", "min", "max"])
    places = found.index.to_numpy(float)
    axes.plot(places, found["mean"], marker="o", markersize=3, **style)
    axes.fill_between(places, found["min"], found["max"], color=style["color"], alpha=0.13, linewidth=0)


def render_transfer(
    networks: pd.DataFrame, curves: pd.DataFrame, figure: Figure, *, classes: int, note: str, verdict: str
) -> str:
    """The page.

    Args:
        networks: a row a network: name, title, parameters, unshared, trained, multiply_adds, seconds, joules,
            joules_per_point.
        curves: as `transfer.summarize` gives it.
        figure: as `transfer_curves` draws it.
        classes: that are among the images for validation.
        note: what n is.
        verdict: as `verdict_on` gives it.
    """
    values = {
        "classes": classes,
        "networks": networks.to_dict("records"),
        "found": curves.set_index(["network", "curve", "measure"]).to_dict("index"),
        "png": to_png(figure),
        "note": note,
        "notice": NOTICE,
        "verdict": verdict,
    }
    return render_page("studies/transfer.html", values, amount=amount)


def verdict_on(curves: pd.DataFrame) -> str:
    """One sentence on the two networks that differ in nothing but what they knew beforehand."""
    found = curves.set_index(["network", "curve", "measure"])["value"]
    shown = {
        (name, measure): f"{found[name, 'lesions', measure]:.3f}"
        for name in ("whole", "untrained")
        for measure in ("start", "asymptote")
    }
    return (
        f"The same network, all of it trained: AUROC {shown['whole', 'asymptote']} from ImageNet's weights,"
        f" {shown['untrained', 'asymptote']} from random ones on all lesions; {shown['whole', 'start']} and"
        f" {shown['untrained', 'start']} on the fewest."
    )
