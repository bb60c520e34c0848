import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from dermtune.metrics import Predictions
from dermtune.studies.corruptions import CORRUPTIONS, SEVERITIES
from dermtune.studies.robustness_measures import AS_IT_IS, measure_robustness
from dermtune.studies.robustness_page import _digits, draw_robustness, render_robustness, verdict_on

TITLES = {"shipped": "<dermtune>", "plain": "without augmentation", "probe": "linear probe"}
ARTEFACTS = {one.name: one.title for one in CORRUPTIONS}


def said(wrong: int) -> Predictions:
    labels = np.repeat([0, 1, 2], 8)
    named = labels.copy()
    named[labels == 0] = np.where(np.arange(8) < wrong, 2, 0)
    probabilities = 0.1 + 0.7 * np.eye(3)[named]
    lesions = np.array([f"L{row}" for row in range(24)], object)
    return Predictions(("mel", "nv", "vasc"), probabilities, labels, named, lesions, (True, False, False))


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    def conditions(extra: int) -> dict[tuple[str, float], Predictions]:
        found = {AS_IT_IS: said(extra)}
        for corruption in CORRUPTIONS:
            worse = 2 if corruption.name == "ink" else 0
            found |= {(corruption.name, float(s)): said(extra + worse) for s in SEVERITIES}
        for name in ("shift", "rotation", "scale"):
            found |= {(name, level): said(extra + (level > 1)) for level in (0.0, 1.0, 2.0)}
        return found

    by_model = {"shipped": conditions(1), "plain": conditions(2), "probe": conditions(3)}
    return measure_robustness(by_model, ("shift", "rotation", "scale"), draws=50, seed=1)


@pytest.mark.parametrize(
    ("value", "text"), [(0.126, "+0.13"), (-0.126, "-0.13"), (-0.001, "+0.00"), (None, "\N{EN DASH}")]
)
def test_numbers_have_two_digits_and_no_negative_zero(value: float | None, text: str) -> None:
    assert _digits(value, sign=True) == text


def test_the_verdict_names_what_costs_most(tables: dict[str, pd.DataFrame]) -> None:
    verdict = verdict_on(tables, ARTEFACTS)
    assert "Most is lost to ink: balanced accuracy falls from 0.96 to 0.88, a change of [-0." in verdict
    assert "melanomas" not in verdict  # a few: it may be chance
    damage = tables["damage"].assign(high=-0.01)
    surely = verdict_on(tables | {"damage": damage}, ARTEFACTS)
    assert "Most melanomas are lost to ink: 88% are named melanoma as they are, 62% then" in surely
    assert "changes the class that is named for 0.0% [0.0%, 14.2%] of the images." in verdict
    assert "the tail with augmentation differs from the one without by +0.04 [" in verdict


def test_the_page_shows_all_of_it_escaped(tables: dict[str, pd.DataFrame]) -> None:
    figure = draw_robustness(tables, ARTEFACTS, TITLES, note="n = 24")
    page = render_robustness(tables, CORRUPTIONS, TITLES, figure, Figure(), note="24 <images>", verdict="V.")
    assert "<images>" not in page
    assert "<dermtune>" not in page
    assert "24 &lt;images&gt;" in page
    assert all(page.count(f"<td>{one.title}") == 3 for one in CORRUPTIONS)
    assert "Mean corruption error" in page
    assert "<script" not in page
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Balanced accuracy, by severity (0: as it is)",
        "What each class's sensitivity lost or gained",
        "Moved",
        "Turned",
        "Nearer or farther",
    ]


def test_a_task_without_melanoma_has_a_verdict(tables: dict[str, pd.DataFrame]) -> None:
    other = {
        name: table.replace({"class": {"mel": "bcc"}}) if "class" in table else table
        for name, table in tables.items()
    }
    assert "melanoma" not in verdict_on(other, ARTEFACTS)
