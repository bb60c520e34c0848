"""Whom the network serves worse, for people: a figure of all groups and mitigations, and a page around."""

from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure

from dermtune.figures import note_below, styled, to_png
from dermtune.page import render_page
from dermtune.subgroups import ATTRIBUTES
from dermtune_bundle.manifest import NOTICE

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

TITLES: Final = {
    "none": "no mitigation",
    "reweighting": "reweighting",
    "group_balanced": "group-balanced sampling",
    "group_dro": "group DRO",
}
_METRICS: Final = {
    "auroc": "AUROC, malignant",
    "sensitivity": "Sensitivity, malignant",
    "specificity": "Specificity, malignant",
}
_STYLES: Final = {  # Okabe and Ito's colours; shapes tell them apart as well
    "none": ("#111827", "o"),
    "reweighting": ("#0072B2", "s"),
    "group_balanced": ("#E69F00", "^"),
    "group_dro": ("#D55E00", "D"),
}
_APART = 0.19  # of a row: between two mitigations


@styled
def bias_figure(found: "pd.DataFrame", sizes: "pd.DataFrame", *, note: str) -> Figure:
    """Dots and whiskers: a row a group, a panel a metric, a colour a mitigation.

    Args:
        found: as `measure_bias` gives it.
        sizes: as `group_sizes` gives it; a group that is not judged has a row without dots.
        note: what n is.
    """
    rows: list[tuple[str, str | None, str]] = []
    for attribute, part in sizes.groupby("attribute", sort=False):
        rows.append((str(attribute), None, ATTRIBUTES[str(attribute)]))
        groups = zip(part["group"].astype(str), part["lesions"], strict=True)
        rows += [(str(attribute), group, f"{group}  (n = {lesions:,})") for group, lesions in groups]
        rows.append((str(attribute), "all", "all people"))
    figure = Figure(figsize=(10.4, 1.5 + 0.42 * len(rows)), layout="constrained")
    grid = figure.subplots(1, len(_METRICS), sharey=True)
    keys = zip(*(found[name] for name in ("attribute", "group", "mitigation", "metric")), strict=True)
    values = dict(zip(keys, found[["value", "low", "high"]].to_numpy(float), strict=True))
    for axes, (metric, title) in zip(grid, _METRICS.items(), strict=True):
        for place, (attribute, group, _) in enumerate(rows):
            for index, name in enumerate(_STYLES):
                key = (attribute, group, name, metric)
                if key in values:
                    _whisker(axes, values[key], place + (index - 1.5) * _APART, name)
        axes.set(title=title, ylim=(len(rows) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(rows)), [label for _, _, label in rows])
    for label, (_, group, _) in zip(grid[0].get_yticklabels(), rows, strict=True):
        if group is None:
            label.set(weight="bold", color="#111827")
    lines = [
        grid[0].plot([], [], color=colour, marker=marker, markersize=5, linewidth=1.2, label=TITLES[name])[0]
        for name, (colour, marker) in _STYLES.items()
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines))
    note_below(
        figure, f"{note} n: lesions. Whiskers: 95% intervals over lesions. No dot: too few lesions to judge."
    )
    return figure


def _whisker(axes: "Axes", numbers: "NDArray[np.float64]", place: float, name: str) -> None:
    colour, marker = _STYLES[name]
    value, *ends = numbers
    axes.plot(ends, [place, place], color=colour, linewidth=1.2)  # nothing where there are no ends
    axes.plot(value, place, color=colour, marker=marker, markersize=4.5)


def render_bias(
    found: "pd.DataFrame",
    sizes: "pd.DataFrame",
    figure: Figure,
    *,
    note: str,
    verdict: str,
    least: int,
    sensitivity: float,
    repeats: int,
) -> str:
    """The page.

    Args:
        found: as `measure_bias` gives it.
        sizes: as `group_sizes` gives it.
        figure: as `bias_figure` draws it.
        note: what n is.
        verdict: as `verdict_on` gives it.
        least: lesions below which a group is not judged.
        sensitivity: what the threshold was chosen for.
        repeats: trainings behind each number, for a fold.
    """
    rows = found.astype(object).where(found.notna(), None).to_dict("records")
    values: dict[str, Any] = {
        "titles": TITLES,
        "metrics": _METRICS,
        "attributes": {name: ATTRIBUTES[name] for name in sizes["attribute"].unique()},
        "groups": sizes.to_dict("records"),
        "found": {(r["attribute"], r["group"], r["mitigation"], r["metric"]): r for r in rows},
        "png": to_png(figure),
        "note": note,
        "verdict": verdict,
        "least": least,
        "sensitivity": sensitivity,
        "repeats": repeats,
        "apart": found["apart"].notna().any(),
        "notice": NOTICE,
    }
    return render_page("studies/bias.html", values)


def verdict_on(found: "pd.DataFrame") -> str:
    """A sentence an attribute on its worst group, and one on what is more than chance."""
    worst = found[found["group"] == "worst"]
    if worst.empty:
        return "No two groups have enough lesions to be compared."
    changed = worst[worst["mitigation"] != "none"].to_dict("records")
    real = [row for row in changed if _is_real(row)]
    sentences = [_change(row) for row in real if row["change"] > 0] or [
        "No mitigation serves the worst group better by more than chance."
    ]
    sentences += [_change(row) for row in real if row["change"] < 0]
    for attribute, part in worst[worst["metric"] == "auroc"].groupby("attribute", sort=False):
        value, which = part.set_index("mitigation")["value"], part.set_index("mitigation")["which"]["none"]
        after = ", ".join(f"{value[name]:.3f} after {TITLES[name]}" for name in [*TITLES][1:])
        sentences.append(
            f"{ATTRIBUTES[str(attribute)]}: AUROC of the worst group {value['none']:.3f} ({which}), {after}."
        )
    return " ".join(sentences)


def _change(row: "Mapping[Hashable, Any]") -> str:
    metric = "AUROC" if row["metric"] == "auroc" else row["metric"]
    return (
        f"By {ATTRIBUTES[row['attribute']].lower()}, {TITLES[row['mitigation']]}"
        f" {'raises' if row['change'] > 0 else 'lowers'} the worst group's {metric}"
        f" by {abs(row['change']):.3f} ({row['change_low']:+.3f} to {row['change_high']:+.3f})."
    )


def _is_real(row: "Mapping[Hashable, Any]") -> bool:
    """Is a change more than other lesions bring, and than training anew does, where that is known?"""
    leaves_out_0 = row["change_low"] > 0 or row["change_high"] < 0
    return bool(leaves_out_0 and not abs(row["change"]) <= row["apart"])
