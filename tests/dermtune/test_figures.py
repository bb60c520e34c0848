import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dermtune import figures
from dermtune.figures import Curve

NOTE = "n = 12 images of 9 lesions (test split)."


def curve(title: str = "Melanoma") -> Curve:
    x = np.linspace(0, 1, 5)
    return Curve(title, "0.91 [0.88, 0.94]\nn = 5 of 12", x, np.sqrt(x), mark=(0.2, 0.6))


def reliability_table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "low": [0.1, 0.8],
            "high": [0.2, 0.9],
            "n": [7, 5],
            "predicted": [0.15, 0.85],
            "observed": [0.2, 1.0],
            "observed_low": [0.1, 1.0],
            "observed_high": [0.3, 1.0],
        }
    )


def history(epochs: int) -> pd.DataFrame:
    falling = np.linspace(1, 0.5, epochs)
    return pd.DataFrame(
        {
            "epoch": range(epochs),
            "lr": falling / 1000,
            "train_loss": falling,
            "val_loss": falling,
            "val_auroc": 1 - falling / 3,
            "val_balanced_accuracy": 1 - falling / 2,
        }
    )


def drawn(name: str) -> Figure:
    if name == "confusion":
        counts = np.array([[5, 1], [0, 6]])
        return figures.confusion_matrix(counts, ["Melanoma", "Nevus"], ["0.8", "1.0"], note=NOTE)
    if name == "roc":
        return figures.roc_curves([curve(), curve("Nevus")], note=NOTE)
    if name == "pr":
        return figures.pr_curves([curve(title) for title in "abcdefgh"], note=NOTE)
    if name == "reliability":
        return figures.reliability([("Melanoma", "probability", reliability_table())], note=NOTE)
    return figures.learning_curves(history(3), note=NOTE)


ALL = ["confusion", "roc", "pr", "reliability", "learning"]


def words(figure: Figure) -> set[str]:
    return {text.get_text().strip() for text in figure.findobj(mpl.text.Text)}


@pytest.mark.parametrize("name", ALL)
def test_the_same_figure_gives_the_same_bytes_without_dates_or_versions(name: str) -> None:
    first, second = figures.to_png(drawn(name)), figures.to_png(drawn(name))

    assert first == second
    assert set(Image.open(io.BytesIO(first)).info) <= {"dpi"}


@pytest.mark.parametrize("name", ALL)
def test_every_figure_says_what_n_is(name: str) -> None:
    assert NOTE in words(drawn(name))


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)

    figures.to_png(drawn("roc"))

    assert dict(mpl.rcParams) == before


def test_the_confusion_matrix_shows_counts_shares_and_intervals() -> None:
    counts = np.array([[3, 1], [0, 0]])

    shown = words(figures.confusion_matrix(counts, ["Melanoma", "Nevus"], ["0.75 [0.5, 1]", "-"], note=NOTE))

    assert {"3", "75%", "1", "25%", "Melanoma\nn = 4", "Nevus\nn = 0", "0.75 [0.5, 1]"} <= shown


def test_a_name_with_dollar_signs_is_text_and_no_formula() -> None:
    shown = figures.to_png(figures.roc_curves([curve(r"$\frac{broken$")], note="$"))

    assert shown.startswith(b"\x89PNG")


def test_no_curve_at_all_is_an_empty_figure_and_no_error() -> None:
    assert figures.to_png(figures.roc_curves([], note=NOTE)).startswith(b"\x89PNG")


def test_one_epoch_is_enough_for_learning_curves() -> None:
    assert any("1 epoch;" in text for text in words(figures.learning_curves(history(1))))


def trials(count: int) -> pd.DataFrame:
    """A search's table; every third trial was stopped early."""
    rows = np.arange(count)
    return pd.DataFrame(
        {
            "trial": rows,
            "state": np.where(rows % 3 == 2, "pruned", "complete"),
            "epochs": 6,
            "score": 0.7 + 0.01 * (rows * 7 % 5),
            "lr": 10.0 ** -(1 + rows % 4),
            "dropout": 0.1 * (rows % 3),
        }
    )


def test_the_history_of_a_search_shows_each_trial_and_the_best_so_far() -> None:
    (axes,) = figures.trial_history(trials(9)).axes
    shown = np.concatenate([points.get_offsets() for points in axes.collections])
    assert sorted(shown[:, 0]) == list(range(9))
    (best,) = axes.lines
    assert best.get_ydata()[:3] == pytest.approx([0.70, 0.72, 0.72]), "the third was stopped"
    assert best.get_ydata()[-1] == pytest.approx(0.74)
    assert (np.diff(best.get_ydata()) >= 0).all()


def test_each_value_has_an_axis_from_its_lowest_to_its_highest() -> None:
    figure = figures.trial_coordinates(trials(9), {"lr"})
    assert {"score", "lr", "dropout", "0.0001", "0.1", "0.2"} < words(figure)
    lines = figure.axes[0].lines
    assert len(lines) == 9
    heights = np.array([line.get_ydata() for line in lines])
    assert heights.min(axis=0) == pytest.approx(0)
    assert heights.max(axis=0) == pytest.approx(1)
    assert set(np.round(heights[:, 1], 6)) == {0, 0.333333, 0.666667, 1}, "logarithmic"


def test_importances_are_bars_and_none_are_said_to_be_none() -> None:
    (axes,) = figures.parameter_importances({"lr": 0.7, "dropout": 0.3}).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dropout", "lr"]
    assert [bar.get_width() for bar in axes.patches] == [0.3, 0.7]
    assert "too few trials ran to their end to tell" in words(figures.parameter_importances({}))


@pytest.mark.parametrize("count", [1, 3])
def test_a_search_of_few_trials_is_drawn_too(count: int) -> None:
    for figure in (figures.trial_history(trials(count)), figures.trial_coordinates(trials(count), {"lr"})):
        assert figures.to_png(figure) == figures.to_png(figure)


def test_a_contact_sheet_shows_images_pixel_by_pixel_in_ragged_rows() -> None:
    red, blue = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)
    red[..., 0], blue[..., 2] = 201, 202

    png = figures.to_png(figures.contact_sheet([[red, red], [blue]], ["first", "second"], "A title"))

    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    assert (pixels == (201, 0, 0)).all(axis=1).sum() == 2 * 400
    assert (pixels == (0, 0, 202)).all(axis=1).sum() == 400


def test_a_contact_sheet_of_nothing_is_no_error() -> None:
    assert figures.to_png(figures.contact_sheet([], [], "Nothing")).startswith(b"\x89PNG")


def test_a_figure_is_written_as_png(tmp_path: Path) -> None:
    figures.write_figure(drawn("learning"), tmp_path / "new" / "learning.png")

    assert (tmp_path / "new" / "learning.png").read_bytes() == figures.to_png(drawn("learning"))
