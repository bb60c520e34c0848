"""What bad pictures and small movements cost, for people: one figure, and a page around it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dermtune.figures import BLUE, GREY, VERMILION, note_below, styled, to_png
from dermtune.page import render_page
from dermtune.studies.corruptions import Corruption
from dermtune.studies.robustness_measures import AS_IT_IS, AUROC, BALANCED
from dermtune_bundle.manifest import NOTICE

_COLOURS: Final = {"shipped": BLUE, "plain": VERMILION, "probe": GREY}
_MARKS: Final = {"shipped": "o", "plain": "s", "probe": "^"}
_AXES: Final = {
    "shift": ("Moved", "pixels of the network's input"),
    "rotation": ("Turned", "degrees, either way"),
    "scale": ("Nearer or farther", "per cent"),
}
MELANOMA: Final = "mel"
_DARK: Final = 0.6  # of a colour map's range, from which on letters are white


@styled
def draw_robustness(
    tables: Mapping[str, pd.DataFrame],
    artefacts: Mapping[str, str],
    classifiers: Mapping[str, str],
    *,
    note: str,
) -> Figure:
    """Balanced accuracy by artefact and severity, what each class lost, and consistency under movements.

    Args:
        tables: as `measure_robustness` gives them.
        artefacts: titles by name, in their order.
        classifiers: titles by name, in their order.
        note: what n is and how intervals were made.
    """
    figure = Figure(figsize=(10.4, 9.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1.75, 1))
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    left, right = upper.subplots(1, 2, sharey=True)
    severities = tables["severities"].query("classifier == 'shipped' and metric == @BALANCED")
    accuracy = severities[severities["artefact"] != AS_IT_IS[0]].pivot_table(
        index="artefact", columns="severity", values="value", sort=False
    )
    as_it_is = float(severities.loc[severities["artefact"] == AS_IT_IS[0], "value"].iloc[0])
    accuracy.insert(0, 0, as_it_is)
    accuracy = accuracy.reindex(list(artefacts))
    _heat(left, accuracy, "Balanced accuracy, by severity (0: as it is)")
    left.set_yticks(range(len(artefacts)), artefacts.values())
    left.set_xlabel("severity")
    lost = tables["damage"].query("classifier == 'shipped' and metric == 'sensitivity'")
    damage = lost.pivot_table(index="artefact", columns="class", values="value", sort=False, dropna=False)
    damage = damage.reindex(list(artefacts))[list(dict.fromkeys(lost["class"]))]
    _heat(right, damage, "What each class's sensitivity lost or gained", signed=True)
    right.set_xlabel("class; mean over the severities")
    moved = tables["consistency"].query("measure == 'same class'")
    for axes, (movement, own) in zip(
        lower.subplots(1, 3, sharey=True), moved.groupby("movement", sort=False), strict=True
    ):
        for name, title in classifiers.items():
            rows = own[own["classifier"] == name]
            places = np.arange(len(rows)) + {"shipped": -0.08, "plain": 0.0, "probe": 0.08}[name]
            around = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]], float)
            axes.errorbar(
                places, rows["value"], yerr=np.nan_to_num(around).clip(0), color=_COLOURS[name], label=title,
                marker=_MARKS[name], markersize=4, linewidth=1.3, elinewidth=0.9, capsize=2,
            )  # fmt: skip
        title, unit = _AXES[str(movement)]
        axes.set_xticks(range(len(rows)), [f"{level:g}" for level in rows["level"]])
        axes.set(title=title, xlabel=unit)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel("same class as before, share")
            axes.legend(fontsize=8, loc="lower left")
    note_below(figure, note)
    return figure


def _heat(axes: Axes, table: pd.DataFrame, title: str, *, signed: bool = False) -> None:
    """Numbers on colours: from 0 to the largest, or, signed, as far below 0 as above."""
    values = table.to_numpy(float)
    end = float(np.nanmax(np.abs(values), initial=1e-9))
    axes.imshow(
        values, cmap="RdBu" if signed else "viridis", vmin=-end if signed else 0, vmax=end, aspect="auto"
    )
    for (row, column), value in np.ndenumerate(values):
        is_dark = abs(value) / end > _DARK if signed else value / end < 1 - _DARK
        text = "" if np.isnan(value) else _digits(value, sign=signed)
        colour = "white" if is_dark else "#111827"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    axes.set_title(title)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def render_robustness(
    tables: Mapping[str, pd.DataFrame],
    corruptions: Sequence[Corruption],
    classifiers: Mapping[str, str],
    figure: Figure,
    sheet: Figure,
    *,
    note: str,
    verdict: str,
) -> str:
    """The page.

    Args:
        tables: as `measure_robustness` gives them.
        corruptions: the artefacts, in their order.
        classifiers: titles by name, in their order.
        figure: as `draw_robustness` draws it.
        sheet: one image under each artefact.
        note: what n is and how intervals were made.
        verdict: as `verdict_on` gives it.
    """
    damage = tables["damage"]
    classes = [name for name in dict.fromkeys(damage["class"]) if name != "all"]
    moved = tables["consistency"]
    values = {
        "corruptions": corruptions,
        "classifiers": classifiers,
        "classes": classes,
        "damage": _by(damage, "classifier", "artefact", "metric", "class"),
        "errors": _by(tables["errors"], "artefact"),
        "augmentation": _by(tables["augmentation"], "metric", "condition"),
        "moved": _by(moved, "classifier", "movement", "level", "measure"),
        "movements": {
            str(name): (*_AXES[str(name)], list(dict.fromkeys(own["level"])))
            for name, own in moved.groupby("movement", sort=False)
        },
        "compared": [
            (AS_IT_IS[0], "As they are"),
            *((one.name, one.title) for one in corruptions),
            ("all artefacts", "All artefacts"),
        ],
        "balanced": BALANCED,
        "auroc": AUROC,
        "as_it_is": AS_IT_IS[0],
        "png": to_png(figure),
        "sheet": to_png(sheet),
        "note": note,
        "notice": NOTICE,
        "verdict": verdict,
    }
    return render_page("studies/robustness.html", values, digits=_digits)


def verdict_on(tables: Mapping[str, pd.DataFrame], artefacts: Mapping[str, str]) -> str:
    """What was lost by what, against the baseline, by a pixel, and what augmentation bought.

    Args:
        tables: as `measure_robustness` gives them.
        artefacts: titles by name.
    """
    damage = tables["damage"].query("classifier == 'shipped'")
    worst = _first(damage[damage["metric"] == BALANCED])
    said = []
    said.append(
        f"Most is lost to {_in_a_sentence(artefacts[worst['artefact']])}: balanced accuracy falls from"
        f" {_digits(worst['before'])} to {_digits(worst['after'])}, a change of {_span(worst, sign=True)},"
        " on the mean over five severities."
    )
    melanoma = damage[(damage["metric"] == "sensitivity") & (damage["class"] == MELANOMA)]
    least = _first(melanoma) if len(melanoma) else None
    if least is not None and least["high"] < 0:
        said.append(
            f"Most melanomas are lost to {_in_a_sentence(artefacts[least['artefact']])}:"
            f" {least['before']:.0%} are named melanoma as they are, {least['after']:.0%} then, a change of"
            f" {_span(least, sign=True)}."
        )
    errors = _by(tables["errors"], "artefact")["mean"]
    said.append(f"Mean corruption error: {_digits(errors['value'])} {_span(errors)} of the linear probe's.")
    moved = tables["consistency"].query("classifier == 'shipped' and measure == 'same class'")
    first = moved[moved["movement"] == "shift"].iloc[0].to_dict()
    pixels = "one pixel" if first["level"] == 1 else f"{first['level']:g} pixels"
    other, least_, most = (1 - first[key] for key in ("value", "high", "low"))
    said.append(
        f"A shift by {pixels} changes the class that is named for {other:.1%} [{least_:.1%}, {most:.1%}] of"
        " the images."
    )
    gain = _by(tables["augmentation"], "metric", "condition")[BALANCED, "all artefacts"]
    bought = f"{_digits(gain['value'], sign=True)} {_span(gain, sign=True)}"
    said.append(
        f"Over all artefacts, the tail with augmentation differs from the one without by {bought} of balanced"
        " accuracy, a training each."
    )
    return " ".join(said)


def _first(rows: pd.DataFrame) -> dict[str, Any]:
    """The row of the least value."""
    return {str(key): value for key, value in rows.sort_values("value").iloc[0].items()}


def _by(table: pd.DataFrame, *keys: str) -> dict[Any, dict[str, Any]]:
    """The rows by some of their columns, None for what is undefined."""
    rows = table.astype(object).where(table.notna(), None)
    named = [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]
    return {tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]: row for row in named}


def _span(row: Mapping[str, Any], *, sign: bool = False) -> str:
    return f"[{_digits(row['low'], sign=sign)}, {_digits(row['high'], sign=sign)}]"


def _digits(value: float | None, *, sign: bool = False) -> str:
    """Two digits, and a dash for what is undefined."""
    if value is None or pd.isna(value):
        return "\N{EN DASH}"
    rounded = round(float(value), 2) + 0.0  # which takes the sign off a zero
    return f"{rounded:+.2f}" if sign else f"{rounded:.2f}"


def _in_a_sentence(title: str) -> str:
    return title if title.isupper() else title.lower()
