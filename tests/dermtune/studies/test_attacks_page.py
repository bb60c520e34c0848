import numpy as np
import pandas as pd
import pytest

from dermtune.figures import to_png
from dermtune.params import Params
from dermtune.studies.adversary import NAMED
from dermtune.studies.attacks_page import (
    Picture,
    _amplified,
    attack_curves,
    picture_sheet,
    render_attacks,
    verdict_on,
)
from dermtune.studies.masking import Check
from dermtune_bundle.manifest import OperatingPoint

POINT = OperatingPoint("mel", "mel", 0.1, "sensitivity >= 0.90", 0.9, 0.8)
FINE = Check("<more> steps", "still right with 1 steps: 3 of 4", passed=True)
BLUNT = Check("larger eps", "x", passed=False)


@pytest.fixture
def curves() -> pd.DataFrame:
    rows = [
        (decision, norm, attack, eps, 12, value, low, high)
        for decision in (NAMED, "mel")
        for norm, sizes in (("linf", (0, 1, 2)), ("l2", (0, 0.1)), ("patch", (0, 0.2)))
        for attack in ("strongest", "pgd")
        for eps, (value, low, high) in zip(
            sizes, ((0.75, 0.6, 0.9), (0.25, 0.1, 0.4), (0, None, None)), strict=False
        )
    ]
    return pd.DataFrame(rows, columns=["decision", "norm", "attack", "eps", "images", "value", "low", "high"])


def test_the_verdict_says_what_the_smallest_change_does(curves: pd.DataFrame) -> None:
    verdict = verdict_on(curves, POINT, [FINE])
    assert "at most 1/255 of each colour value, which nobody sees, brings" in verdict
    coarse = curves.assign(eps=curves["eps"] * 30)
    assert "at most 30/255 of each colour value brings" in verdict_on(coarse, POINT, [FINE])
    assert "images of melanoma that are found from 75% [60%, 90%] to 25% [10%, 40%]" in verdict
    assert "No check found a sign that the attacks are blunt" in verdict
    assert "may be blunt (larger eps: failed)" in verdict_on(curves, POINT, [FINE, BLUNT])


def test_the_page_escapes_and_tells_what_failed(curves: pd.DataFrame, params: Params) -> None:
    price = pd.DataFrame(
        [{"images": kind, "metric": metric, "model": model, "shipped": 0.9, "value": value}
        | {"difference": value - 0.9, "low": -0.15, "high": None}
        for model in ("unchanged", "attacked")
        for kind, metric, value in (("clean", "AUROC, macro", 0.8), ("attacked", "Accuracy, PGD", 0.95))]
    )  # fmt: skip
    page = render_attacks(
        curves,
        [FINE, BLUNT],
        price,
        b"png",
        None,
        points=[POINT],
        config=params.study.attacks,
        note="12 images",
        verdict="<verdict>",
    )
    assert "&lt;more&gt; steps" in page
    assert "&lt;verdict&gt;" in page
    assert page.count('class="failed"') == 1
    assert page.count("-0.100") == 2
    assert "Under attack: Accuracy, PGD: 0.900 before, 0.950 after." in page
    assert "Without one: AUROC, macro: 0.900 before, 0.800 after." in page
    assert "None" not in page
    assert "What it looks like" not in page


def test_figures_show_each_decision_and_each_image(curves: pd.DataFrame) -> None:
    figure = attack_curves(curves, [POINT], note="n")
    assert len(figure.axes) == 6
    (line,) = [one for one in figure.axes[0].lines if one.get_label() == "strongest"]
    assert line.get_ydata().tolist() == [0.75, 0.25, 0]
    image = np.full((8, 8, 3), 100, np.uint8)
    picture = Picture(image, image + np.uint8(1), image, "mel 90%", "mel 1%", "mel 2%")
    sheet = picture_sheet([picture, picture], eps=1)
    assert len(sheet.axes) == 8
    assert sheet.axes[1].get_xlabel() == "mel 1%"
    assert to_png(sheet) == to_png(picture_sheet([picture, picture], eps=1))


def test_the_whole_range_of_a_change_is_made_visible() -> None:
    assert _amplified(np.array([-2.0, 0, 1, 2]), 2).tolist() == [1, 128, 191, 255]
