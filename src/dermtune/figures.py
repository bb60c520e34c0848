"""The figures of the pipeline: plain data in, a matplotlib Figure out; one style, bytes that never vary.

Nothing global is touched: no pyplot, no backend, no rcParams that outlive a call. Colours are those of Okabe
and Ito (Color Universal Design, 2008), which people with any colour vision can tell apart.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from dermtune_bundle.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
GREEN: Final = "#009E73"
GREY: Final = "#6B7280"
_PALE: Final = "#D1D5DB"
DrawStyle: TypeAlias = Literal["default", "steps-post"]
_DPI: Final = 120
_SCORE: Final = "Score: the mean of macro AUROC and balanced accuracy on validation, at the best epoch."
styled = mpl.rc_context(
    {
        "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
        "font.size": 9,
        "text.parse_math": False,  # a class or an image may be called "$x$"
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.labelcolor": "#374151",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E5E7EB",
        "grid.linewidth": 0.7,
        "xtick.color": GREY,
        "ytick.color": GREY,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "figure.dpi": _DPI,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
    }
)


@dataclass(frozen=True)
class Curve:
    """One class's curve, and the words above it.

    Points of a precision-recall curve come with the highest recall first, as scikit-learn gives them: each
    precision then holds down to the next recall, which is what average precision sums.
    """

    title: str
    caption: str
    """The area with its interval, and n."""
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    chance: float | None = None
    """Height of the line that guessing gives; None for the diagonal."""
    mark: tuple[float, float] | None = None
    """The operating point."""


@dataclass(frozen=True)
class Distribution:
    """Values of one property, of two sets of images."""

    title: str
    reference: NDArray[np.float64]
    recent: NDArray[np.float64]
    is_alarm: bool
    logarithmic: bool = False
    """Is it a probability, of which small ones count as well?"""


@styled
def confusion_matrix(
    counts: NDArray[np.int64], titles: Sequence[str], recalls: Sequence[str], *, note: str
) -> Figure:
    """Images by true class (row) and predicted class (column): counts, and each one's share of its row.

    Args:
        counts: (K, K).
        titles: K names.
        recalls: K texts such as `0.81 [0.74, 0.88]`, written at the end of each row.
        note: what n is and how the intervals were made.
    """
    size = len(titles)
    figure = Figure(figsize=(3.4 + 0.78 * size, 2.0 + 0.62 * size), layout="constrained")
    axes = figure.add_subplot()
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros(counts.shape), where=rows > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(size, size):
        count, part = counts[row, column], shares[row, column]
        if count:
            color = "white" if part > 0.55 else "#111827"  # noqa: PLR2004 (the map darkens there)
            weight = "bold" if row == column else "normal"
            axes.text(column, row - 0.13, f"{count:,}", ha="center", va="center", color=color, weight=weight)
            axes.text(column, row + 0.22, f"{part:.0%}", ha="center", va="center", color=color, fontsize=7)
    labels = [fill(title, 16) for title in titles]
    axes.set_xticks(range(size), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), [f"{x}\nn = {n:,}" for x, n in zip(labels, rows[:, 0], strict=True)])
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(size), recalls, color="#111827")
    right.set_ylabel("found, with 95% interval")
    for side in (axes, right):
        side.tick_params(length=0)
        side.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix: images, and share of the true class")
    note_below(figure, note)
    return figure


@styled
def roc_curves(curves: Sequence[Curve], *, note: str) -> Figure:
    """ROC curves, a panel a class; the others lie behind it in grey."""
    title, xlabel, ylabel = "ROC: one class against the rest", "false positives, share", "found, share"
    return _panels(curves, title, xlabel, ylabel, note, drawstyle="default")


@styled
def pr_curves(curves: Sequence[Curve], *, note: str) -> Figure:
    """Precision-recall curves, a panel a class; the others lie behind it in grey."""
    title = "Precision and recall: one class against the rest"
    return _panels(curves, title, "recall", "precision", note, drawstyle="steps-post")


@styled
def reliability(panels: Sequence[tuple[Any, ...]], *, note: str) -> Figure:
    """Given probability against what was so, and how many images each bin holds.

    Args:
        panels: title, what the probability is of, and a table as of `metrics.reliability_table`, each; after
            these, where there is one, that table without calibration.
        note: what n is and how the intervals were made.
    """
    figure = Figure(figsize=(4.2 * len(panels), 4.9), layout="constrained")
    grid = figure.subplots(2, len(panels), sharex=True, squeeze=False, height_ratios=(3, 1))
    for (upper, lower), (title, what, table, *before) in zip(grid.T, panels, strict=True):
        middle, width = (table["low"] + table["high"]) / 2, table["high"] - table["low"]
        below = np.clip(table["observed"] - table["observed_low"], 0, None)
        above = np.clip(table["observed_high"] - table["observed"], 0, None)
        upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
        for other in before:
            upper.plot(
                other["predicted"],
                other["observed"],
                color=VERMILION,
                marker="x",
                linewidth=0.9,
                label="without calibration",
            )
        upper.errorbar(
            table["predicted"],
            table["observed"],
            yerr=np.array([below, above]),
            color=BLUE,
            marker="o",
            markersize=5,
            linewidth=1.2,
            capsize=2,
            label="measured, 95% interval",
        )
        upper.set(title=title, ylabel="share that was so", xlim=(0, 1), ylim=(0, 1.02))
        upper.legend(loc="upper left", fontsize=8)
        bars = lower.bar(middle, table["n"], width=width * 0.92, color=BLUE, alpha=0.75)
        lower.bar_label(bars, fontsize=7, color="#374151", padding=1)
        lower.set(xlabel=what, ylabel="images", ylim=(0, table["n"].max() * 1.25))
    note_below(figure, note)
    return figure


@styled
def learning_curves(history: "pd.DataFrame", *, note: str = "") -> Figure:
    """Losses, validation scores and learning rate over the epochs.

    Args:
        history: history.csv: `epoch, lr, train_loss, val_loss, val_auroc, val_balanced_accuracy`.
        note: for instance how many images the splits hold.
    """
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    losses, scores, rate = figure.subplots(1, 3, sharex=True)
    epochs = history["epoch"]
    losses.plot(epochs, history["train_loss"], color=GREY, marker="s", markersize=3.5, label="training")
    losses.plot(epochs, history["val_loss"], color=BLUE, marker="o", markersize=4, label="validation")
    losses.set(title="Loss", ylim=(0, None))
    scores.plot(epochs, history["val_auroc"], color=BLUE, marker="o", markersize=4, label="AUROC, macro")
    scores.plot(
        epochs,
        history["val_balanced_accuracy"],
        color=VERMILION,
        marker="^",
        markersize=4,
        label="balanced accuracy",
    )
    scores.set(title="Validation", ylim=(0, 1.02))
    best = int(np.argmax((history["val_auroc"] + history["val_balanced_accuracy"]).to_numpy()))
    scores.annotate(
        f"{history['val_auroc'][best]:.3f}",
        (epochs[best], history["val_auroc"][best]),
        xytext=(0, -13),
        textcoords="offset points",
        ha="center",
        color=BLUE,
        fontsize=8,
    )
    rate.plot(epochs, history["lr"], color=GREEN, marker="o", markersize=4)
    rate.set(title="Learning rate of the classifier", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axes in (losses, scores, rate):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    losses.legend(fontsize=8)
    scores.legend(fontsize=8, loc="lower right")
    epochs_run = f"{len(history)} epoch{'s' if len(history) > 1 else ''}"
    note_below(
        figure, note or f"{epochs_run}; the number stands at the epoch with the best mean of both scores."
    )
    return figure


@styled
def forest(table: "pd.DataFrame", *, metrics: Sequence[str], titles: Mapping[str, str], note: str) -> Figure:
    """Metrics with their intervals, group by group; a group too small to judge has none.

    Args:
        table: a row a group, as `subgroups.measure_subgroups` gives them.
        metrics: columns of it that have `_low` and `_high` as well.
        titles: what the attributes are called.
        note: what n is and how the intervals were made.
    """
    rows: list[tuple[str, pd.Series[Any] | None]] = []
    for attribute, part in table.groupby("attribute", sort=False):
        rows.append((titles[str(attribute)], None))
        rows += [(str(row["group"]), row) for _, row in part.iterrows()]
    figure = Figure(figsize=(9.6, 1.0 + 0.24 * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(grid, metrics, strict=True):
        for place, (_, row) in enumerate(rows):
            if row is not None and row[metric] is not None and not np.isnan(row[metric]):
                low, high = (row[f"{metric}_{end}"] for end in ("low", "high"))
                axes.plot([low, high], [place, place], color=BLUE, linewidth=1.2)
                axes.plot(row[metric], place, color=BLUE, marker="o", markersize=4)
        axes.set(title=metric.replace("auroc", "AUROC"), xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    labels = [name if row is None else f"{name}  (n = {row['images']:,})" for name, row in rows]
    grid[0].set_yticks(range(len(rows)), labels)
    for label, (_, row) in zip(grid[0].get_yticklabels(), rows, strict=True):
        if row is None:
            label.set(weight="bold", color="#111827")
    note_below(figure, f"{note} No interval: too few lesions to judge.")
    return figure


@styled
def risk_coverage(table: "pd.DataFrame", *, note: str) -> Figure:
    """Share that is wrong among the images that the model is surest of.

    Args:
        table: as `abstention.risk_coverage` gives it.
        note: what n is and how the intervals were made.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(
        table["coverage"],
        table["risk_low"].astype(float),
        table["risk_high"].astype(float),
        color=BLUE,
        alpha=0.15,
        linewidth=0,
        label="95% interval",
    )
    axes.plot(table["coverage"], table["risk"], color=BLUE, marker="o", markersize=3, label="measured")
    axes.set(
        title="The fewer images are answered, the fewer answers are wrong",
        xlabel="share of the images that is answered, the surest first",
        ylabel="share of answers that is wrong",
        xlim=(0, 1.02),
        ylim=(0, None),
    )
    axes.legend(fontsize=8, loc="upper left")
    note_below(figure, note)
    return figure


@styled
def trial_history(trials: "pd.DataFrame") -> Figure:
    """Score of each trial of a search, and the best so far.

    Args:
        trials: `trial, state, epochs, score`, as `search.trials_table` gives them.
    """
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    ordered = trials.sort_values("trial")
    complete = ordered[ordered["state"] == "complete"]
    pruned = ordered[ordered["state"] != "complete"]
    axes.scatter(pruned["trial"], pruned["score"], color=_PALE, edgecolor=GREY, s=26, label="stopped early")
    axes.scatter(complete["trial"], complete["score"], color=BLUE, s=30, label="ran to its end", zorder=3)
    best = ordered["score"].where(ordered["state"] == "complete").cummax().ffill()
    axes.step(ordered["trial"], best, where="post", color=VERMILION, linewidth=1.2, label="best so far")
    axes.set(title="Score of each trial", xlabel="trial; 0 is the recipe in use", ylabel="score")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(fontsize=8, loc="best")
    note_below(figure, _SCORE)
    return figure


@styled
def parameter_importances(importances: Mapping[str, float]) -> Figure:
    """Share of the variance of the scores that each value explains, largest on top."""
    figure = Figure(figsize=(7.2, 1.2 + 0.4 * max(1, len(importances))), layout="constrained")
    axes = figure.add_subplot()
    names = list(importances)[::-1]
    bars = axes.barh(names, [importances[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set(title="What the score depends on", xlabel="share of the variance explained", xlim=(0, 1))
    axes.grid(visible=False, axis="y")
    if not importances:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "too few trials ran to their end to tell", ha="center", transform=axes.transAxes)
    note_below(
        figure, "Functional ANOVA over the trials that ran to their end; of few trials it says little."
    )
    return figure


@styled
def trial_coordinates(trials: "pd.DataFrame", logarithmic: Collection[str]) -> Figure:
    """The values of each trial, an axis a value, a line a trial; those that ran to their end are coloured.

    Args:
        trials: `trial, state, epochs, score` and a column a value, as `search.trials_table` gives them.
        logarithmic: the values whose axis is logarithmic.
    """
    names = [str(name) for name in trials if name not in {"trial", "state", "epochs"}]
    figure = Figure(figsize=(1.2 + 1.35 * len(names), 4.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-0.2, len(names) - 0.8), ylim=(-0.08, 1.08), title="What was tried, and how well it did")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(length=0)
    heights = np.empty((len(trials), len(names)))
    for place, name in enumerate(names):
        values = trials[name].to_numpy(float)
        shown = np.log(values) if name in logarithmic else values
        low, high = shown.min(), shown.max()
        heights[:, place] = (shown - low) / (high - low) if high > low else 0.5
        axes.vlines(place, 0, 1, color=GREY, linewidth=0.8)
        for height, value in ((-0.03, values.min()), (1.03, values.max())):
            axes.text(place, height, f"{value:.3g}", ha="center", va="center", fontsize=8)
    complete = (trials["state"] == "complete").to_numpy()
    axes.plot(heights[~complete].T, color=_PALE, linewidth=0.8)
    worst_first = np.flatnonzero(complete)[np.argsort(trials["score"].to_numpy()[complete])]
    for rank, row in enumerate(worst_first, start=1):
        color = mpl.colormaps["Blues"](0.25 + 0.75 * rank / len(worst_first))
        axes.plot(heights[row], color=color, linewidth=1.8)
    note_below(figure, f"{_SCORE} The darker, the better; grey: stopped early.")
    return figure


@styled
def distributions(panels: Sequence[Distribution], *, note: str) -> Figure:
    """What is usual and what is so now, a panel a property; where they differ too much, the title says so."""
    columns = 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(2.7 * columns, 0.7 + 2.0 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for panel, axes in zip(panels, grid.flat, strict=False):
        both = np.concatenate([panel.reference, panel.recent])
        if panel.logarithmic:
            bins = np.geomspace(1e-4, 1, 21)
            axes.set_xscale("log")
            axes.set_xticks([1e-4, 1e-2, 1], ["0.0001", "0.01", "1"])
            axes.set_xticks([], minor=True)
        else:
            low, high = float(both.min()), float(both.max())
            bins = np.linspace(low, high if high > low else low + 1, 21)
        for values, look in (
            (panel.reference, {"color": BLUE, "alpha": 0.4, "histtype": "stepfilled", "label": "reference"}),
            (panel.recent, {"color": VERMILION, "linewidth": 1.4, "histtype": "step", "label": "recent"}),
        ):
            inside = values.clip(bins[0], bins[-1])
            axes.hist(inside, bins=bins, weights=np.full(len(values), 1 / max(1, len(values))), **look)
        title = fill(f"{panel.title}: ALARM" if panel.is_alarm else panel.title, 30)
        axes.set_title(title, fontsize=8.5, color=VERMILION if panel.is_alarm else "#111827")
        axes.tick_params(labelsize=7)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    grid[0, 0].legend(fontsize=7.5)
    note_below(figure, note)
    return figure


@styled
def named_shares(reference: Mapping[str, float], recent: Mapping[str, float], *, note: str) -> Figure:
    """Share of the images for which each class is named, in the reference and now."""
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(reference))
    for shift, shares, color, label in (
        (-0.2, reference, BLUE, "reference"),
        (0.2, recent, VERMILION, "recent"),
    ):
        bars = axes.bar(places + shift, list(shares.values()), 0.38, color=color, alpha=0.8, label=label)
        axes.bar_label(bars, fmt="{:.0%}", fontsize=7, padding=1)
    axes.set_xticks(places, list(reference))
    axes.set(title="Class named", ylabel="share of the images")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(visible=False, axis="x")
    axes.legend(fontsize=8)
    note_below(figure, note)
    return figure


@styled
def daily(table: "pd.DataFrame", *, usual: float, note: str) -> Figure:
    """How many images each day brought, and on what share of them the model abstained.

    Args:
        table: `day, images, abstained` (a share), in order.
        usual: share of the reference on which it abstains.
        note: what the line is.
    """
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    places = np.arange(len(table))
    bars = upper.bar(places, table["images"], 0.6, color=BLUE, alpha=0.75)
    upper.bar_label(bars, fontsize=7, padding=1)
    upper.set(title="Images answered", ylim=(0, 1.2 * max(1, table["images"].max())))
    lower.axhline(usual, color=GREY, linestyle="--", linewidth=1)
    lower.plot(places, table["abstained"], color=VERMILION, marker="o", markersize=5, linewidth=1)
    highest = max(0.1, 1.2 * usual, 1.2 * table["abstained"].max())
    lower.set(title="Share that the model abstained on", ylim=(0, min(1.03, highest)))
    lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lower.set_xticks(places, list(table["day"]), rotation=30, ha="right", rotation_mode="anchor")
    for axes in (upper, lower):
        axes.grid(visible=False, axis="x")
    note_below(figure, note)
    return figure


@styled
def contact_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]], row_titles: Sequence[str], title: str
) -> Figure:
    """Small images in rows, for people to look at; one pixel of an image is one of the figure.

    Args:
        rows: square images uint8 (S, S, 3), all of one S; rows may differ in length.
        row_titles: one a row.
        title: above them all.
    """
    side = max((image.shape[0] for row in rows for image in row), default=0)
    gap, left, top = 4, 150, 34  # pixels
    width = max((len(row) for row in rows), default=0) * (side + gap)
    height = len(rows) * (side + gap)
    sheet = np.full((max(1, height), max(1, width), 3), 255, np.uint8)
    for line, row in enumerate(rows):
        for column, image in enumerate(row):
            y, x = line * (side + gap), column * (side + gap)
            sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    full_width, full_height = max(left + width, 420), top + height
    figure = Figure(figsize=(full_width / _DPI, full_height / _DPI))
    figure.text(10 / full_width, 1 - 12 / full_height, title, va="top", weight="bold", fontsize=10)
    figure.figimage(sheet, xo=left, yo=0)
    for line, row_title in enumerate(row_titles):
        middle = 1 - (top + line * (side + gap) + side / 2) / full_height
        text = fill(row_title, 18)
        figure.text((left - 10) / full_width, middle, text, ha="right", va="center", fontsize=8)
    return figure


@styled
def to_png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure always gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(to_png(figure))


def _panels(
    curves: Sequence[Curve], title: str, xlabel: str, ylabel: str, note: str, *, drawstyle: DrawStyle
) -> Figure:
    columns = min(4, max(1, len(curves)))
    lines = max(1, -(-len(curves) // columns))
    figure = Figure(figsize=(0.4 + 2.5 * columns, 0.9 + 3.0 * lines), layout="constrained")
    figure.suptitle(f"{title}\n", x=0.01, ha="left", weight="bold", fontsize=10.5)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(curves):
            _panel(axes, curves, curves[place], drawstyle)
        else:
            axes.set_visible(False)
        last_of_its_column = place + columns >= len(curves)
        axes.tick_params(labelbottom=last_of_its_column)
        axes.set_xlabel(xlabel if last_of_its_column else "")
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    note_below(figure, note)
    return figure


def _panel(axes: Axes, curves: Sequence[Curve], curve: Curve, drawstyle: DrawStyle) -> None:
    for other in curves:
        axes.plot(other.x, other.y, color=_PALE, linewidth=0.8, drawstyle=drawstyle)
    chance = [0, 1] if curve.chance is None else [curve.chance, curve.chance]
    axes.plot([0, 1], chance, color=GREY, linestyle="--", linewidth=0.9)
    axes.plot(curve.x, curve.y, color=BLUE, drawstyle=drawstyle)
    if curve.mark:
        axes.plot(*curve.mark, color=VERMILION, marker="D", markersize=6, markeredgecolor="white")
    axes.set_title(fill(curve.title, 26), fontsize=9, pad=31)
    axes.text(0, 1.03, curve.caption, transform=axes.transAxes, fontsize=8, color="#374151")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.03), box_aspect=1, xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))


def note_below(figure: Figure, note: str) -> None:
    """Write what n is below a figure, small."""
    figure.supxlabel(f"\n{note}", x=0.01, ha="left", fontsize=7.5, color=GREY)
