"""What the page of the microscope shows: a map, channels with their patches, an image on its way."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dermtune.backbone import Trunk
from dermtune.progress import progress
from dermtune.shards import PackedImages, places
from dermtune.studies.channels import Layer, activations_of, as_tensor, box_around
from dermtune.studies.images import Images
from dermtune.table import read_table
from dermtune_bundle.decode import resize
from dermtune_bundle.manifest import Diagnosis
from dermtune_bundle.pictures import thumbnail, to_jpeg

# Okabe and Ito's colours, without yellow and black, of which one or the other cannot be seen on each theme.
_MALIGNANT: Final = ("#D55E00", "#CC79A7", "#E69F00")
_BENIGN: Final = ("#0072B2", "#009E73", "#56B4E9", "#8C8C8C")
_FRAME: Final = (0, 158, 115)
_MARGIN: Final = 0.025  # of the map's side
_NEARLY_ALL: Final = 0.97
_STANDING_OUT: Final = 3
_PATCH, _CASE, _NEAR, _GIVEN = 80, 144, 64, 320  # pixels
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

    def places(self, side: float) -> NDArray[np.float64]:
        """(M, 2) on a square of some side."""
        spots = np.array([(case.x, case.y) for case in self.cases]).reshape(-1, 2)
        low, span = spots.min(0), np.maximum(np.ptp(spots, 0), 1e-9)
        found: NDArray[np.float64] = side * (_MARGIN + (spots - low) / span * (1 - 2 * _MARGIN))
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


def layer_views(
    found: dict[str, Any], painted: Sequence[Sequence[dict[str, Any]]], train: Images
) -> list[LayerView]:
    """What is shown of each layer.

    Args:
        found: as `channels.measure_channels` gives it.
        painted: as `feature_visualization.paint_channels` gives it.
        train: the images that it was found on.
    """
    told = {(row["layer"], row["label"]): row for row in found["table"]}
    views = []
    for about, shown, pictures, size in zip(
        found["depths"], found["shown"], painted, found["shapes"], strict=True
    ):
        some = [*pictures, *([None] * (len(shown) - len(pictures)))]
        channels = [
            _channel(
                one,
                picture,
                train,
                auroc=_interval(told[about["layer"], one["label"]]),
                field=about["field"],
                size=size,
            )
            for one, picture in zip(shown, some, strict=True)
        ]
        views.append(
            LayerView(
                about["layer"], about["frozen"], about["field"], tuple(size), _interval(about), channels
            )
        )
    return views


def _channel(
    one: dict[str, Any],
    picture: dict[str, Any] | None,
    train: Images,
    *,
    auroc: Interval,
    field: int,
    size: Sequence[int],
) -> Channel:
    corners = [box_around(place, (size[1], size[2]), field, train.pixels.shape[1]) for place in one["places"]]
    return Channel(
        number=one["channel"],
        label=one["label"],
        auroc=auroc,
        patches=[_patch(train, row, corner, field) for row, corner in zip(one["rows"], corners, strict=True)],
        value=one["values"][0],
        picture=base64.b64decode(picture["picture"]) if picture else None,
        picture_value=picture["value"] if picture else None,
    )


def _interval(row: dict[str, Any]) -> Interval:
    return row["auroc"], row["low"], row["high"]


def _patch(train: Images, row: int, corner: tuple[int, int], side: int) -> Patch:
    """The square that excites a channel, and the image around it."""
    top, left = corner
    pixels = train.pixels[row]
    return Patch(
        image_id=str(train.table["image_id"][row]),
        label=train.classes[train.labels[row]],
        patch=to_jpeg(stretched(pixels[top : top + side, left : left + side], _PATCH)),
        whole=to_jpeg(thumbnail(framed(pixels, top, left, side), _PATCH)),
    )


def through_layers(
    pixels: NDArray[np.uint8],
    layers: Sequence[Layer],
    trunk: Trunk,
    usual: Sequence[dict[str, Sequence[float]]],
    *,
    input_size: int,
) -> list[tuple[str, bytes, list[tuple[int, float, bytes]]]]:
    """What each layer makes of an image, as `Given.layers` has it.

    Args:
        pixels: (H, W, 3).
        layers: from the image to the classifier.
        trunk: whose normalisation of pixels it is.
        usual: of each layer, `mean` and `deviation` of each channel's largest activation.
        input_size: side that the network sees.
    """
    rows = []
    with torch.inference_mode():
        found = activations_of(layers, trunk, as_tensor(resize(pixels, input_size)[None]))
        for layer, output, known in zip(layers, found, usual, strict=True):
            maps = output[0].numpy()
            deviation = np.maximum(known["deviation"], 1e-6)
            apart = (maps.max((1, 2)) - known["mean"]) / deviation
            standing = np.argsort(-apart, kind="stable")[:_STANDING_OUT]
            shown = [(int(at), float(apart[at]), heat(np.maximum(maps[at], 0))) for at in standing]
            rows.append((layer.name, heat(np.abs(maps).mean(0)), shown))
    return rows


def given_picture(pixels: NDArray[np.uint8]) -> bytes:
    """The image that is followed, as JPEG."""
    return to_jpeg(thumbnail(pixels, _GIVEN))


def thumbnails_of(images: Path, cases: Sequence[Case], nears: Sequence[Near]) -> dict[str, bytes]:
    """Small pictures, JPEG by image id: of what is on the map, and smaller ones of what is near to it.

    Args:
        images: what ingest wrote.
        cases: what is on the map.
        nears: what else is shown.

    Raises:
        DataError: the images are missing or damaged.
    """
    sides = {one.image_id: _NEAR for one in nears} | {case.image_id: _CASE for case in cases}
    table = read_table(images / "images.parquet")
    packed, rows = PackedImages(images), table[table["image_id"].isin(sides)]
    return {
        place.image_id: to_jpeg(thumbnail(packed.decode(place), sides[place.image_id]))
        for place in progress(places(rows), "thumbnails", len(rows))
    }


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
    """A copy of a picture (S, S, 3) with a frame on the edge of a square of it; none if it is nearly all."""
    found = picture.copy()
    if side > _NEARLY_ALL * len(picture):
        return found
    width = max(2, len(picture) // 40)
    edge = np.zeros(picture.shape[:2], bool)
    edge[max(top - width, 0) : top + side + width, max(left - width, 0) : left + side + width] = True
    edge[
        max(top, width) : min(top + side, len(picture) - width),
        max(left, width) : min(left + side, len(picture) - width),
    ] = False
    found[edge] = _FRAME
    return found
