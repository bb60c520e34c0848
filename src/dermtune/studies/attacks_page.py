"""What attacks did, for people: curves, pictures of changed images, and a page around them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from dermtune.figures import BLUE, GREEN, GREY, VERMILION, note_below, styled
from dermtune.labels import lesion_class
from dermtune.page import render_page
from dermtune.studies import AttacksConfig
from dermtune.studies.adversary import NAMED
from dermtune.studies.masking import Check
from dermtune_bundle.manifest import MALIGNANT, NOTICE, OperatingPoint

TITLES: Final = {
    "linf": "each colour value by at most (of 255)",
    "l2": "Euclidean norm of the change",
    "patch": "a square in the corner, share of the side",
}
_CURVES: Final = {
    "strongest": ("strongest", VERMILION, "-"),
    "pgd": ("many steps (PGD)", BLUE, ":"),
    "fgsm": ("one step (FGSM)", "#56B4E9", "--"),
    "square": ("black box (Square)", GREEN, "-."),
    "noise": ("random pixels, no attack", GREY, ":"),
}
_NORMS: Final = ("linf", "l2", "patch")
_UNSEEN: Final = 2  # grey levels: less than the noise of a camera
_PRICE: Final = {"AUROC, macro", "Balanced accuracy"}


@dataclass(frozen=True)
class Picture:
    """One image, and what attacks made of it."""

    original: NDArray[np.uint8]
    """(S, S, 3)."""
    changed: NDArray[np.uint8]
    """In L-inf."""
    patched: NDArray[np.uint8]
    said_original: str
    """What the graph says of each."""
    said_changed: str
    said_patched: str


@styled
def attack_curves(curves: pd.DataFrame, points: Sequence[OperatingPoint], *, note: str) -> Figure:
    """Share of decisions that stay right, by size of the change: a row a decision, a column a norm.

    Args:
        curves: as `attacks.summarize` gives it.
        points: operating points, a row each below the class that is named.
        note: what n is.
    """
    titles = {NAMED: "right class named"} | {point.name: f"found at {point.name}" for point in points}
    figure = Figure(figsize=(10.4, 1.1 + 2.35 * len(titles)), layout="constrained")
    grid = figure.subplots(len(titles), len(_NORMS), sharey=True, squeeze=False)
    for line, (decision, title) in zip(grid, titles.items(), strict=True):
        for axes, norm in zip(line, _NORMS, strict=True):
            own = curves[(curves["decision"] == decision) & (curves["norm"] == norm)]
            _panel(axes, own)
            axes.set(ylim=(-0.03, 1.03), xlabel=TITLES[norm] if decision == [*titles][-1] else "")
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        images = curves.loc[curves["decision"] == decision, "images"].iloc[0]
        line[0].set(ylabel=f"{title}\n(n = {images})")
    for axes, title in zip(
        grid[0], ("Every pixel a little (L∞)", "Little in all (L2)", "A patch"), strict=True
    ):
        axes.set_title(title)
    known = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=len(known), fontsize=8)
    note_below(figure, note)
    return figure


def _panel(axes: Axes, own: pd.DataFrame) -> None:
    sizes = sorted(own["eps"].unique())
    for name, (label, colour, line) in _CURVES.items():
        rows = own[own["attack"] == name].sort_values("eps")
        if not len(rows):
            continue
        places = np.array([sizes.index(eps) for eps in rows["eps"]])
        values = rows["value"].astype(float)
        # the strongest below, and wider: it often is one of the others
        width = 3.2 if name == "strongest" else 1.4
        axes.plot(
            places,
            values,
            line,
            color=colour,
            linewidth=width,
            marker="o",
            markersize=width + 1.6,
            label=label,
        )
        if name in {"strongest", "square", "noise"}:
            low, high = (rows[end].astype(float) for end in ("low", "high"))
            axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xticks(range(len(sizes)), ["none", *(f"{eps:g}" for eps in sizes[1:])])


@styled
def picture_sheet(pictures: Sequence[Picture], *, eps: float) -> Figure:
    """Images beside what attacks made of them, a row an image.

    Args:
        pictures: at least one.
        eps: largest change of the second column, in grey levels; the third shows it as large as can be.
    """
    titles = ("original", f"changed by at most {eps:g} of 255", "that change, made visible", "with a patch")
    figure = Figure(figsize=(9.2, 0.5 + 2.5 * len(pictures)), layout="constrained")
    grid = figure.subplots(len(pictures), len(titles), squeeze=False)
    for line, picture in zip(grid, pictures, strict=True):
        change = picture.changed.astype(np.float64) - picture.original
        shown = (picture.original, picture.changed, _amplified(change, eps), picture.patched)
        words = (picture.said_original, picture.said_changed, "", picture.said_patched)
        for axes, image, text in zip(line, shown, words, strict=True):
            axes.imshow(image)
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(text, fontsize=8)
            axes.spines[:].set_visible(False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8.5)
    return figure


def _amplified(change: NDArray[np.floating], eps: float) -> NDArray[np.uint8]:
    """A change of -eps to eps as 1 to 255; none is 128."""
    shown: NDArray[np.uint8] = (128 + change * 127 / eps).clip(0, 255).astype(np.uint8)
    return shown


def verdict_on(curves: pd.DataFrame, point: OperatingPoint, checks: Sequence[Check]) -> str:
    """What it comes to, in plain words.

    Args:
        curves: as `attacks.summarize` gives it.
        point: whose positives are to be found.
        checks: of the attacks themselves.
    """
    own = curves[(curves["norm"] == "linf") & (curves["attack"] == "strongest")]
    smallest = own.loc[own["eps"] > 0, "eps"].min()

    def found(decision: str, eps: float) -> Any:  # noqa: ANN401 (a row)
        return own[(own["decision"] == decision) & (own["eps"] == eps)].iloc[0]

    before, after = found(point.name, 0), found(point.name, smallest)
    right, still = found(NAMED, 0), found(NAMED, smallest)
    target = "malignant lesions" if point.target == MALIGNANT else lesion_class(point.target).title.lower()
    failed = [check.name for check in checks if not check.passed]
    unseen = ", which nobody sees," if smallest <= _UNSEEN else ""
    trust = (
        " No check found a sign that the attacks are blunt."
        if not failed
        else f" But the attacks may be blunt ({'; '.join(failed)}: failed): it may be easier to fool yet."
    )
    return (
        f"A change of at most {smallest:g}/255 of each colour value{unseen} brings the share of"
        f" images of {target} that are found from {_percent(before)} to {_percent(after)}, and that of images"
        f" named rightly from {right['value']:.0%} to {still['value']:.0%}.{trust}"
    )


def verdict_on_hardening(price: pd.DataFrame) -> str:
    """What training against attacks bought under attack, and what it cost without.

    Args:
        price: as `hardening.measure_hardening` gives it, with rows.
    """
    own = price[(price["model"] == "attacked") & price["value"].notna()]
    told = {
        kind: "; ".join(
            f"{row.metric}: {row.shipped:.3f} before, {row.value:.3f} after"
            for row in own[own["images"] == kind].itertuples()
            if kind == "attacked" or row.metric in _PRICE
        )
        for kind in ("attacked", "clean")
    }
    return f"Under attack: {told['attacked']}. Without one: {told['clean']}."


def _percent(row: Mapping[str, Any]) -> str:
    if pd.isna(row["low"]):
        return f"{row['value']:.0%}"
    return f"{row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def render_attacks(
    curves: pd.DataFrame,
    checks: Sequence[Check],
    price: pd.DataFrame,
    figure: bytes,
    sheet: bytes | None,
    *,
    points: Sequence[OperatingPoint],
    config: AttacksConfig,
    note: str,
    verdict: str,
) -> str:
    """The page.

    Args:
        curves: as `attacks.summarize` gives it.
        checks: of the attacks.
        price: as `hardening.measure_hardening` gives it; empty where nothing was trained.
        figure: PNG, of `attack_curves`.
        sheet: PNG, of `picture_sheet`; None where there is nothing to show.
        points: operating points.
        config: how far the attacks went.
        note: what n is.
        verdict: as `verdict_on` gives it.
    """
    titles = {NAMED: "Right class named"}
    titles |= {point.name: f"Found at {point.name} ({point.target})" for point in points}
    tables = []
    for decision, title in titles.items():
        for norm in _NORMS:
            own = curves[(curves["decision"] == decision) & (curves["norm"] == norm)]
            shown = [name for name in _CURVES if (own["attack"] == name).any()]
            sizes = sorted(own["eps"].unique())
            cells = own.set_index(["attack", "eps"])
            lines = [
                (_CURVES[name][0], [_percent(cells.loc[(name, eps)]) for eps in sizes]) for name in shown
            ]
            tables.append({"title": f"{title}: {TITLES[norm]}", "sizes": sizes, "lines": lines})
    values = {
        "checks": checks,
        "config": config,
        "hardening": price.to_dict("records"),
        "hardened": verdict_on_hardening(price) if len(price) else "",
        "note": note,
        "notice": NOTICE,
        "png": figure,
        "points": points,
        "sheet": sheet,
        "tables": tables,
        "verdict": verdict,
    }
    return render_page("studies/attacks.html", values, number=_number)


def _number(value: float | None, pattern: str) -> str:
    return "–" if value is None or pd.isna(value) else pattern % value  # noqa: RUF001 (a dash, as in a table)
