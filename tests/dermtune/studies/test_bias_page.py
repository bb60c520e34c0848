import re

import numpy as np
import pandas as pd

from dermtune.studies.bias_page import TITLES, bias_figure, render_bias, verdict_on

SIZES = pd.DataFrame(
    [("sex", "<female>", 90, 30, 12, 18), ("sex", "male", 80, 28, 14, 14), ("sex", "other", 4, 2, 1, 1)],
    columns=["attribute", "group", "images", "lesions", "malignant", "benign"],
)


def table(change: float, low: float, high: float, groups: tuple[str, ...] = ("<female>", "male", "worst")):  # noqa: ANN201
    rows = []
    for name in TITLES:
        moved = (0.0, 0.0, 0.0) if name == "none" else (change, low, high)
        for group in (*groups, "all"):
            for metric in ("auroc", "sensitivity", "specificity"):
                which = "male" if group == "worst" else ""
                rows.append(("sex", name, group, metric, 0.8 + moved[0], 0.7, 0.9, *moved, which))
        rows.append(("sex", name, "all", "balanced_accuracy", 0.6, np.nan, np.nan, *moved, ""))
    columns = ["attribute", "mitigation", "group", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "change", "change_low", "change_high", "which"])


def test_the_page_shows_each_group_and_says_which_are_too_small() -> None:
    found = table(0.05, -0.02, 0.11)
    page = render_bias(
        found,
        SIZES,
        bias_figure(found, SIZES, note="n = 60"),
        note="60 lesions",
        verdict=verdict_on(found),
        least=10,
        sensitivity=0.95,
        repeats=2,
    )
    text = " ".join(page.split())
    assert "&lt;female&gt;" in page
    assert "<female>" not in page
    assert text.count("too few lesions to judge") == 3
    assert "+0.050<br><small>-0.020 to +0.110</small>" in text
    assert not re.search(r"\bnan\b", text)
    for title in TITLES.values():
        assert title in text


def test_the_verdict_says_what_is_more_than_chance() -> None:
    by_chance = verdict_on(table(0.05, -0.02, 0.11))
    assert (
        "the AUROC of the worst group is 0.800 (male) without mitigation, 0.850 after reweighting"
        in by_chance
    )
    assert "Of 6 changes of a worst group, none is more than chance" in by_chance
    real = verdict_on(table(0.05, 0.01, 0.11))
    assert "By sex, group DRO changes the worst group's AUROC by +0.050 (+0.010 to +0.110)." in real
    assert "Of 6 changes of a worst group, 6 are more than chance" in real


def test_nothing_is_claimed_where_no_groups_can_be_compared() -> None:
    assert verdict_on(table(0, 0, 0, groups=("male",))) == "No two groups have enough lesions to be compared."
