import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dermtune.data_figures import ages, class_balance, colours
from dermtune.figures import to_png

COUNTS = pd.DataFrame(
    [
        ("mel", "train", 6, 3),
        ("mel", "val", 2, 1),
        ("mel", "test", 0, 0),
        ("nv", "train", 60, 20),
        ("nv", "val", 10, 5),
        ("nv", "test", 30, 15),
    ],
    columns=["label", "split", "images", "lesions"],
).astype({"images": "Int64", "lesions": "Int64"})
WANTED = {"train": 0.7, "val": 0.2, "test": 0.1}


def table() -> pd.DataFrame:
    reds = np.arange(101, dtype=float)
    melanoma = pd.DataFrame({"label": "mel", "red": reds, "green": 90.0, "blue": 80.0, "age": 50.0})
    nevus = melanoma.assign(label="$nv$", red=reds + 100, age=np.nan)
    return pd.concat([melanoma, nevus]).astype({"label": "string", "age": "Float64"})


def drawn(name: str) -> Figure:
    if name == "class_balance":
        return class_balance(COUNTS, wanted=WANTED)
    return colours(table()) if name == "colours" else ages(table())


@pytest.mark.parametrize("name", ["class_balance", "colours", "ages"])
def test_the_same_data_gives_the_same_bytes_and_no_setting_changes(name: str) -> None:
    before = dict(mpl.rcParams)
    first = to_png(drawn(name))
    assert first == to_png(drawn(name))
    assert dict(mpl.rcParams) == before
    with Image.open(io.BytesIO(first)) as image:
        assert image.format == "PNG"
        assert image.width > 400


def test_bars_are_the_counts_and_shares_of_lesions() -> None:
    figure = class_balance(COUNTS, wanted=WANTED)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["mel", "nv"]
    assert [[bar.get_width() for bar in bars] for bars in left.containers] == [[6, 60], [2, 10], [0, 30]]
    shares = np.array([[bar.get_width() for bar in bars] for bars in right.containers])
    assert shares == pytest.approx(np.array([[0.75, 0.5], [0.25, 0.125], [0, 0.375]]))
    assert [float(line.get_xdata()[0]) for line in right.lines] == pytest.approx([0.7, 0.9])
    assert [text.get_text() for text in left.texts] == [" 8", " 100"]
    assert "n = 108 images of 44 lesions. Dashed" in figure.get_supxlabel()


def test_where_no_shares_were_wanted_none_are_drawn() -> None:
    figure = class_balance(COUNTS)
    assert not figure.axes[1].lines
    assert "Dashed" not in figure.get_supxlabel()


def test_colours_are_medians_with_nine_tenths_of_the_images() -> None:
    (axes,) = colours(table()).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["mel", "$nv$"]
    red = axes.lines[0]
    assert list(red.get_xdata()) == [50, 150]
    assert [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()] == [[5, 95], [105, 195]]


def test_ages_are_counted_and_those_missing_told() -> None:
    figure = ages(table())
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == 101
    assert (
        "n = 101 images with an age; 101 without one. Dashed: the median, 50 years." in figure.get_supxlabel()
    )


def test_an_age_of_more_than_a_hundred_is_shown_and_none_at_all_as_well() -> None:
    (axes,) = ages(table().assign(age=104.0)).axes
    assert sum(bar.get_height() for bar in axes.patches) == 202
    assert axes.get_xlim() == (0, 105)
    none = ages(table().assign(age=pd.array([pd.NA] * 202, dtype="Float64")))
    assert "n = 0 images with an age; 202 without one." in none.get_supxlabel()
