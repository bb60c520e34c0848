"""The page says what was found first, shows it, and needs nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermtune.drift import Recent, measure_drift
from dermtune.drift_report import Look, _figures, render_drift, write_drift_report
from dermtune.scoring import EMBEDDING
from dermtune.upkeep import MonitorConfig

CONFIG = MonitorConfig(days=7, least=20, level=0.01, effect=0.2, unanswered=0.2)


def answers(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    melanoma = rng.random(count)
    vectors = rng.normal(0, 1, (count, 4)).astype(EMBEDDING)
    return pd.DataFrame(
        {
            "day": [f"2026-11-{16 + row % 7}" for row in range(count)],
            "sharpness": rng.gamma(5, 2, count),
            "brightness": rng.normal(150, 20, count),
            "side": 450,
            "distance": rng.beta(2, 8, count),
            "predicted": np.where(melanoma > 0.5, "mel", "nv"),
            "abstains": rng.random(count) < 0.1,
            "probability.mel": melanoma,
            "probability.nv": 1 - melanoma,
            "embedding": [vector.tobytes() for vector in vectors],
        }
    )


def look_at(recent: pd.DataFrame, *, failed: int = 0, names: dict[str, str] | None = None) -> Look:
    reference = answers(60, 1).drop(columns="day").rename(columns=names or {})
    taken = Recent(recent.rename(columns=names or {}), failed)
    findings = measure_drift(reference, taken, CONFIG, rng=np.random.default_rng(0))
    return Look(reference, taken, findings, CONFIG, "a" * 64, "2026-11-22 06:00")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "Yes: no drift that matters."),
        ({"brightness": 90.0}, "No: 1 of 10 checks raise an alarm."),
    ],
)
def test_the_verdict_is_on_top_and_the_page_needs_nothing_else(
    change: dict[str, float], verdict: str
) -> None:
    shown = render_drift(look_at(answers(60, 2).assign(**change)))
    assert shown.index(verdict) < shown.index("<table>")
    assert shown.count('<tr class="alarm">') == len(change)
    assert shown.count('<img src="data:image/png;base64,') == 3
    assert "<script" not in shown
    assert "http" not in shown.replace("http-equiv", "")


def test_too_few_images_are_no_pass() -> None:
    for few in (answers(60, 2)[:5], answers(60, 2)[:0]):
        shown = render_drift(look_at(few))
        assert "Too few images to say." in shown
        assert "Yes:" not in shown
    assert "No image was answered." in shown
    assert "No: 1 of 5 checks" in render_drift(look_at(answers(60, 2)[:0], failed=20))


def test_a_class_may_be_called_anything() -> None:
    shown = render_drift(look_at(answers(60, 2), names={"probability.nv": "probability.<b>$x$"}))
    assert "<b>$x$" not in shown
    assert "probability of &lt;b&gt;$x$" in shown


def test_the_figures_name_what_raised_the_alarm() -> None:
    panels = _figures(look_at(answers(60, 2).assign(brightness=90.0)))["distributions"].axes
    titles = [panel.get_title(loc="left") for panel in panels]
    assert [title for title in titles if "ALARM" in title] == ["brightness: ALARM"]


def test_the_page_is_written(tmp_path: Path) -> None:
    look = look_at(answers(60, 2)[:0])
    write_drift_report(look, tmp_path / "deep/monitor.html")
    assert (tmp_path / "deep/monitor.html").read_text() == render_drift(look)
