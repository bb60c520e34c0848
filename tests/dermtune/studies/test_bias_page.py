import re

import numpy as np
import pandas as pd

from dermtune.studies.bias_page import TITLES, bias_figure, render_bias, verdict_on

SIZES = pd.DataFrame(
    [("sex", "<female>", 90, 30, 12, 18), ("sex", "male", 80, 28, 14, 14), ("sex", "other", 4, 2, 1, 1)],
    columns=["attribute", "group", "images", "lesions", "malignant", "benign"],
)


def table(  # noqa: ANN201
    change: float,
    low: float,
    high: float,
    *,
    apart: float = 0.01,
    groups: tuple[str, ...] = ("<female>", "male", "worst"),
):
    rows = []
    for name in TITLES:
        moved = (0.0, 0.0, 0.0) if name == "none" else (change, low, high)
        for group in (*groups, "all"):
            for metric in ("auroc", "sensitivity", "specificity"):
                which = "male" if group == "worst" else ""
                rows.append(("sex", name, group, metric, 0.8 + moved[0], 0.7, 0.9, *moved, apart, which))
        rows.append(("sex", name, "all", "balanced_accuracy", 0.6, np.nan, np.nan, *moved, apart, ""))
    columns = ["attribute", "mitigation", "group", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "change", "change_low", "change_high", "apart", "which"])


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
    assert "change <b>+0.050</b><br><small>-0.020 to +0.110</small>" in text
    assert not re.search(r"\bnan\b", text)
    for title in TITLES.values():
        assert title in text


def test_the_verdict_says_what_is_more_than_chance() -> None:
    none = "No mitigation serves the worst group better by more than chance."
    by_chance = verdict_on(table(0.05, -0.02, 0.11))
    assert by_chance.startswith(none)
    assert "AUROC of the worst group 0.800 (male), 0.850 after reweighting" in by_chance
    raised = verdict_on(table(0.05, 0.01, 0.11))
    assert "By sex, group DRO raises the worst group's AUROC by 0.050 (+0.010 to +0.110)." in raised
    lowered = verdict_on(table(-0.05, -0.09, -0.01))
    assert lowered.startswith(none)
    assert "lowers the worst group's sensitivity by 0.050" in lowered
    assert verdict_on(table(0.05, 0.01, 0.11, apart=0.06)).startswith(none), "training anew does as much"
    assert "raises" in verdict_on(table(0.05, 0.01, 0.11, apart=np.nan)), "of one repeat it is not known"


def test_nothing_is_claimed_where_no_groups_can_be_compared() -> None:
    assert verdict_on(table(0, 0, 0, groups=("male",))) == "No two groups have enough lesions to be compared."
