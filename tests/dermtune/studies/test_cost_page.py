import pandas as pd
import pytest

from dermtune.studies.cost_page import cost_figure, duration, render_cost, verdict_on

COST = {"seconds": 90.0, "joules": 7200.0, "grams": 0.7}
FOUND = {
    "country": "DEU",
    "stages": {"embed": COST, "finetune": COST},
    "total": {"seconds": 180.0, "joules": 14_400.0, "grams": 1.4},
    "size": {
        "parameters": 4_000_000,
        "trained": 3_000_000,
        "unshared": 1,
        "multiply_adds": 200,
        "trained_multiply_adds": 50,
    },
    "auroc": {"value": 0.9, "low": 0.8, "high": 0.95},
    "joules_per_point": 360.0,
    "work": {"embed": 1e9, "finetune": 1e9, "whole": 6e9},
}


def test_the_page_says_what_was_measured() -> None:
    figure = cost_figure(pd.DataFrame([{"stage": "embed", **COST}]))
    page = " ".join(render_cost(FOUND, figure, verdict=verdict_on(FOUND)).split())
    assert "took 3.0 minutes and 4 Wh, 360 joules for each hundredth of AUROC" in page
    assert "3.0 times the multiply-adds" in page
    assert "0.900 [0.800, 0.950]" in page
    assert '1 million</td><td class="number">3 million</td><td class="number">4 million' in page


def test_a_model_that_only_guesses_has_no_cost_a_point() -> None:
    found = FOUND | {"joules_per_point": None, "auroc": {"value": None, "low": None, "high": None}}
    assert "hundredth" not in verdict_on(found)
    figure = cost_figure(pd.DataFrame([{"stage": "embed", **COST}]))
    assert "undefined" in render_cost(found, figure, verdict="")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.4, "12 seconds"), (119, "119 seconds"), (120, "2.0 minutes"), (9000, "2.5 hours")],
)
def test_durations_are_in_the_unit_that_people_use(seconds: float, text: str) -> None:
    assert duration(seconds) == text
