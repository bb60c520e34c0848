"""What the layers respond to, for people: a map of images to click on, and what excites each layer.

The page has no script: points are links, and a card is shown while it is the target of one (CSS `:target`).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dermtune.figures import BLUE, GREY, note_below, styled, to_png
from dermtune.page import render_page
from dermtune_bundle.manifest import NOTICE, Diagnosis

# Okabe and Ito's colours, without yellow and black, of which one or the other cannot be seen on each theme.
_MALIGNANT: Final = ("#D55E00", "#CC79A7", "#E69F00")
_BENIGN: Final = ("#0072B2", "#009E73", "#56B4E9", "#8C8C8C")
_SIDE: Final = 600  # of the map, in units of its own
_MARGIN: Final = 14
_FRAME: Final = (0, 158, 115)
Interval = tuple[float | None, float | None, float | None]
"""Value, low, high."""


@dataclass(frozen=True)
class Near:
    """A training image that is near to another."""

    image_id: str
    label: str
    cosine: float


@dataclass(frozen=True)
class Case:
    """An image on the map."""

    image_id: str
    label: str
    named: str
    """The class that the model names."""
    probability: float
    """Of that class."""
    x: float
    y: float
    near: Sequence[Near]
    """Of training."""
    mates: Sequence[int]
    """Places of the nearest others on the map among its cases."""


@dataclass(frozen=True)
class Map:
    """The map of images."""

    cases: Sequence[Case]
    classes: Sequence[Diagnosis]
    thumbnails: dict[str, bytes]
    """JPEG, by image id: of all cases and all that are near to them."""

    @property
    def colors(self) -> dict[str, str]:
        """A colour a class: warm for malignant ones."""
        found: dict[str, str] = {}
        for palette, is_malignant in ((_MALIGNANT, True), (_BENIGN, False)):
            own = [known.name for known in self.classes if known.malignant is is_malignant]
            found |= {name: palette[number % len(palette)] for number, name in enumerate(own)}
        return found

    def places(self) -> NDArray[np.float64]:
        """(M, 2) on a square of _SIDE units, y downwards."""
        spots = np.array([(case.x, case.y) for case in self.cases]).reshape(-1, 2)
        low, span = spots.min(0), np.maximum(np.ptp(spots, 0), 1e-9)
        found: NDArray[np.float64] = _MARGIN + (spots - low) / span * (_SIDE - 2 * _MARGIN)
        return found


@dataclass(frozen=True)
class Patch:
    """What of an image excites a channel."""

    image_id: str
    label: str
    patch: bytes
    """JPEG."""
    whole: bytes
    """JPEG of the image, the patch framed."""


@dataclass(frozen=True)
class Channel:
    """A channel, and what excites it."""

    number: int
    label: str
    """The class that it tells best."""
    auroc: Interval
    patches: Sequence[Patch]
    value: float
    """The largest activation on training images."""
    picture: bytes | None
    """JPEG of what was made to excite it."""
    picture_value: float | None


@dataclass(frozen=True)
class LayerView:
    """A layer, and some of its channels."""

    name: str
    is_frozen: bool
    field: int
    """Side of what a unit sees, in pixels."""
    size: tuple[int, int, int]
    """(C, h, w)."""
    auroc: Interval
    """Mean over classes of the best channels'."""
    channels: Sequence[Channel]


@dataclass(frozen=True)
class Given:
    """An image on its way through the layers."""

    name: str
    label: str | None
    picture: bytes
    """JPEG."""
    probabilities: dict[str, float]
    near: Sequence[Near]
    layers: Sequence[tuple[str, bytes, Sequence[tuple[int, float, bytes]]]]
    """A layer's name, its mean activation (PNG), and the channels that stand out most: number, by how many
    standard deviations, and their activation (PNG)."""


@styled
def microscope_figure(
    shown: Map, depths: pd.DataFrame, model: dict[str, float | None], *, note: str
) -> Figure:
    """The map, and how well the best single channels of each layer tell the classes.

    Args:
        shown: the map.
        depths: a row a layer: layer, frozen, auroc, low, high.
        model: auroc, low and high of the whole network.
        note: what n is.
    """
    figure = Figure(figsize=(10.4, 5.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_map(left, shown)
    _draw_depths(right, depths, model)
    note_below(figure, note)
    return figure


def _draw_map(axes: Axes, shown: Map) -> None:
    places = shown.places()
    labels = np.array([case.label for case in shown.cases])
    for known in shown.classes:
        own = places[labels == known.name]
        marker = "^" if known.malignant else "o"
        title = f"{known.title}{', malignant' if known.malignant else ''} ({len(own)})"
        axes.scatter(
            *own.T, s=22, marker=marker, color=shown.colors[known.name], alpha=0.85, label=title, linewidth=0
        )
    axes.invert_yaxis()
    axes.set(
        title="Validation images, alike ones near each other (t-SNE)", xticks=[], yticks=[], aspect="equal"
    )
    axes.spines[:].set_visible(False)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=2)


def _draw_depths(axes: Axes, depths: pd.DataFrame, model: dict[str, float | None]) -> None:
    along = np.arange(len(depths))
    values = depths[["auroc", "low", "high"]].astype(float).to_numpy().T
    below = np.clip([values[0] - values[1], values[2] - values[0]], 0, None)
    axes.errorbar(
        along,
        values[0],
        yerr=below,
        color=BLUE,
        marker="o",
        markersize=5,
        capsize=2,
        label="best single channel of each class",
    )
    if model["auroc"] is not None:
        axes.axhline(model["auroc"], color="#D55E00", linestyle="--", linewidth=1.2, label="whole network")
    axes.axhline(0.5, color="#D1D5DB", linewidth=1)
    frozen = int(depths["frozen"].sum())
    if 0 < frozen < len(depths):
        axes.axvline(frozen - 0.5, color=GREY, linestyle=":", linewidth=1)
        axes.text(frozen - 0.6, 0.47, "frozen", ha="right", fontsize=8, color=GREY)
        axes.text(frozen - 0.4, 0.47, "trained", ha="left", fontsize=8, color=GREY)
    axes.set_xticks(along, depths["layer"], rotation=40, ha="right", rotation_mode="anchor")
    axes.set(
        title="How well one channel tells a class, by depth",
        ylabel="AUROC on validation, mean over classes",
        ylim=(0.45, 1.01),
    )
    axes.legend(fontsize=8, loc="upper left")


def render_microscope(
    shown: Map,
    layers: Sequence[LayerView],
    given: Given,
    *,
    agreement: pd.DataFrame,
    depths: pd.DataFrame,
    model: dict[str, float | None],
    filters: Sequence[bytes],
    note: str,
    verdict: str,
) -> str:
    """The page.

    Args:
        shown: the map.
        layers: from the image to the classifier.
        given: the image that is followed.
        agreement: as `neighbors.measure_agreement` gives it.
        depths: as of `microscope_figure`.
        model: the same.
        filters: PNGs of the first convolution's.
        note: what n is.
        verdict: as `verdict_on` gives it.
    """
    values = {
        "cases": shown.cases,
        "places": shown.places().round(1).tolist(),
        "classes": shown.classes,
        "kinds": {known.name: number for number, known in enumerate(shown.classes)},
        "titles": {known.name: known.title for known in shown.classes},
        "counts": pd.Series([case.label for case in shown.cases]).value_counts().to_dict(),
        "colors": shown.colors,
        "thumbnails": shown.thumbnails,
        # a picture that several cards show is in the page once
        "numbers": {name: number for number, name in enumerate(shown.thumbnails)},
        "side": _SIDE,
        "layers": layers,
        "given": given,
        "agreement": agreement.to_dict("records"),
        "depths": to_png(_depth_figure(depths, model, note)),
        "filters": filters,
        "note": note,
        "notice": NOTICE,
        "verdict": verdict,
    }
    return render_page("studies/microscope.html", values)


@styled
def _depth_figure(depths: pd.DataFrame, model: dict[str, float | None], note: str) -> Figure:
    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    _draw_depths(figure.add_subplot(), depths, model)
    note_below(figure, note)
    return figure


def verdict_on(
    agreement: pd.DataFrame, depths: pd.DataFrame, model: dict[str, float | None], *, neighbors: int
) -> str:
    """Two sentences: do neighbours share a class, and how does what single channels tell grow with depth?"""
    found = agreement[agreement["label"] == "all"].set_index("space")
    whole, frozen = found.loc["whole"], found.loc["frozen"]
    first, last = depths.iloc[0], depths.iloc[-1]
    return (
        f"Of the {neighbors} training lesions nearest to an image, {_share(whole)} are of its class, on the mean over"
        f" classes; {whole['chance']:.0%} would be by chance, {_share(frozen)} are by what the frozen layers see"
        f" alone. The best single channel for a class reaches an AUROC of {_area(first)} in the {first['layer']} and"
        f" {_area(last)} in the {last['layer']}; the whole network {_area(pd.Series(model))}."
    )


def _share(row: "pd.Series[float]") -> str:
    if pd.isna(row["low"]):
        return f"{row['share']:.0%}"
    return f"{row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def _area(row: "pd.Series[float]") -> str:
    if pd.isna(row["auroc"]):
        return "nothing that can be measured"
    text = f"{row['auroc']:.2f}"
    return text if pd.isna(row["low"]) else f"{text} [{row['low']:.2f}, {row['high']:.2f}]"


def heat(activation: NDArray[np.floating]) -> bytes:
    """A map (h, w) from 0 to its largest value in matplotlib's viridis, as PNG."""
    scaled = activation / max(float(activation.max()), 1e-12)
    return to_png_bytes((255 * mpl.colormaps["viridis"](scaled)[..., :3]).round().astype(np.uint8))


def to_png_bytes(picture: NDArray[np.uint8]) -> bytes:
    """A picture (h, w, 3) as PNG, pixel by pixel."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def stretched(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """A picture (h, w, 3) as a square of another side."""
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def framed(picture: NDArray[np.uint8], top: int, left: int, side: int) -> NDArray[np.uint8]:
    """A copy of a picture (S, S, 3) with a frame around a square of it."""
    width = max(2, len(picture) // 40)
    found = picture.copy()
    outer = np.zeros(picture.shape[:2], bool)
    outer[max(top - width, 0) : top + side + width, max(left - width, 0) : left + side + width] = True
    outer[top : top + side, left : left + side] = False
    if side + 2 * width >= len(picture):  # all of it is seen
        return found
    found[outer] = _FRAME
    return found
