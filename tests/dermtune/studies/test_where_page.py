import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from dermtune.studies.localisation import MEASURES, METHODS, PRIORS, SIDE
from dermtune.studies.where_page import (
    Shown,
    Tables,
    contact_sheet,
    localisation_figure,
    render_where,
    verdict_on,
)


def methods(over: Mapping[str, tuple[float | None, ...]]) -> pd.DataFrame:
    """All methods alike, but that the map shown differs from the blind one as said, measure by measure."""
    nothing = (None, None, None)
    rows = []
    for name in METHODS:
        for measure in MEASURES:
            row = {"method": name, "measure": measure, "images": 50, "value": 0.8, "low": 0.7, "high": 0.9}
            for other in (*PRIORS, "shown"):
                known = name not in PRIORS and name != other
                found = over[measure] if known else nothing
                row |= dict(
                    zip((f"over_{other}", f"over_{other}_low", f"over_{other}_high"), found, strict=True)
                )
            rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture
def shares() -> pd.DataFrame:
    measures = (
        *("agree", "correlation", "by_chance", "above_chance"),
        *("both_inside", "grad_cam_alone", "occlusion_alone", "both_outside"),
    )
    rows = [
        {"group": group, "measure": measure, "images": 20, "value": 0.6, "low": None, "high": None}
        for group in ("all", "mel")
        for measure in measures
    ]
    return pd.DataFrame(rows)


OVER = {"pointing": (-0.2, -0.3, -0.1), "overlap": (0.05, 0.01, 0.1), "energy": (0.01, -0.1, 0.1)}


def test_the_verdict_is_by_the_interval_of_the_difference(shares: pd.DataFrame) -> None:
    verdict = verdict_on(methods(OVER), shares)
    assert "worse (by 0.20) at pointing into the lesion" in verdict
    assert "better (by 0.05) at outlining it" in verdict
    assert "not told apart at keeping to it" in verdict
    assert "80% [70% to 90%]" in verdict
    assert "agree on 60% of 20 images" in verdict


def test_a_method_without_any_map_has_a_page_as_well(shares: pd.DataFrame) -> None:
    nothing = dict.fromkeys(MEASURES, (None, None, None))
    table = methods(nothing)
    has = table["method"].isin(["best", *PRIORS])
    for column in ("value", "low", "high"):
        table[column] = table[column].astype(object).where(has, None)
    assert "on (no image has such a map) of the images" in verdict_on(table, shares)
    figure = localisation_figure(table, note="n = 50")
    groups = table[table["method"] == "shown"].assign(group="mel")
    agreement = pd.DataFrame({"agree": [True]})
    tables = Tables(table, groups, shares, agreement)
    page = render_where(tables, figure, {}, note="", verdict="So.", window=0.25, least=0.5)
    changed = page.split("it would change by")[1].split("</p>")[0]
    assert not re.search(r"\d", changed)


def test_the_page_shows_all_and_escapes_names(shares: pd.DataFrame) -> None:
    table = methods(OVER)
    groups = table[table["method"].isin(["shown", *PRIORS])].assign(group="mel")
    agreement = pd.DataFrame(
        [
            {"image_id": "<b>1", "label": "mel", "named": "nv", "correlation": float("nan"), "agree": False}
            | {"grad_cam_inside": True, "occlusion_inside": False, "apart": 0.5}
        ]
    )
    figure = localisation_figure(table, note="n = 50")
    page = render_where(
        Tables(table, groups, shares, agreement),
        figure,
        {"A <sheet>": figure},
        note="n = 50",
        verdict="So.",
        window=0.25,
        least=0.5,
    )
    assert "&lt;b&gt;1" in page
    assert "A &lt;sheet&gt;" in page
    assert "Melanoma" in page
    assert "+0.05 [+0.01 to +0.10]" in page, "what taking off the mean of all classes' maps changes"
    assert page.count("data:image/") == 2


def test_the_sheet_marks_where_each_map_is_highest() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:64, :64] = True
    image = np.full((60, 80, 3), 200, np.uint8)
    low, high = np.zeros((4, 4)), np.zeros((4, 4))
    low[3, 0] = high[0, 3] = 1
    shown = Shown(image, mask, {"shown": low, "finer": high, "occlusion": high}, "one")
    figure = contact_sheet([shown, shown])
    assert len(figure.axes) == 8
    marks = [tuple(float(value[0]) for value in line.get_data()) for line in figure.axes[1].lines]
    assert marks == [(0.125 * 80 - 0.5, 0.875 * 60 - 0.5)]
    assert not figure.axes[0].lines
