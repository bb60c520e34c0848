import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from dermtune.backbone import Trunk
from dermtune.studies.channels import Layer
from dermtune.studies.images import Images
from dermtune.studies.microscope_views import (
    Case,
    Map,
    Near,
    framed,
    given_picture,
    heat,
    layer_views,
    stretched,
    through_layers,
    thumbnails_of,
)
from dermtune.table import read_table
from dermtune_bundle.manifest import Diagnosis

PIXELS = Trunk([], (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # no normalisation: 0 to 255 as they are


def read(picture: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(io.BytesIO(picture)))


def case(x: float, y: float, name: str = "v0") -> Case:
    return Case(name, "mel", "nv", 0.6, x, y, [], [])


def test_the_map_fills_its_square_and_malignant_classes_are_warm() -> None:
    classes = [Diagnosis(name, name, name in {"bcc", "mel"}) for name in ("bcc", "df", "mel", "nv")]
    shown = Map([case(-3, 1), case(1, 5), case(-1, 2)], classes, {})
    np.testing.assert_allclose(shown.places(100), [[2.5, 2.5], [97.5, 97.5], [50, 26.25]])
    assert np.isfinite(Map([case(2, 2)], classes, {}).places(100)).all()
    assert shown.colors == {"bcc": "#D55E00", "mel": "#CC79A7", "df": "#0072B2", "nv": "#009E73"}
    many = [Diagnosis(str(number), "", malignant=False) for number in range(9)]
    assert len(Map([], many, {}).colors) == 9


def test_a_frame_lies_around_its_square_and_within_the_image() -> None:
    picture = np.full((40, 40, 3), 7, np.uint8)
    found = framed(picture, 10, 20, 8)
    marked = (found != 7).any(2)
    assert marked[8:20, 18:30].sum() == marked.sum() == 12**2 - 8**2
    assert not marked[10:18, 20:28].any()
    corner = (framed(picture, 0, 30, 10) != 7).any(2)
    assert corner[0, 30:].all()
    assert corner[:10, 39].all()
    assert not corner[4:8, 32:36].any()
    other = (framed(picture, 30, 0, 10) != 7).any(2)
    np.testing.assert_array_equal(other, corner[::-1, ::-1])
    assert (framed(picture, 0, 0, 40) == 7).all()
    assert (picture == 7).all()


def test_heat_rises_from_zero_to_the_largest_value() -> None:
    found = read(heat(np.array([[0.0, 2.0], [4.0, 8.0]]))).astype(int)
    assert found.shape == (2, 2, 3)
    assert found[0, 0].tolist() == [68, 1, 84]  # both ends of viridis
    assert found[1, 1].tolist() == [253, 231, 37]
    assert read(heat(np.zeros((2, 2))))[1, 1].tolist() == [68, 1, 84]


def test_what_stands_out_is_told_against_what_is_usual() -> None:
    convolution = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(3)[:, :, None, None])
    layer = Layer("stem", nn.Sequential(convolution).requires_grad_(requires_grad=False), is_frozen=True)
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:] = (100, 150, 0)
    usual = [{"mean": [90.0, 149.0, 0.0], "deviation": [5.0, 10.0, 0.0]}]
    ((name, mean, standing),) = through_layers(pixels, [layer], PIXELS, usual, input_size=32)
    assert name == "stem"
    assert read(mean).shape == (32, 32, 3)
    assert [(at, round(apart, 2)) for at, apart, _ in standing] == [(0, 2.0), (1, 0.1), (2, 0.0)]


def test_a_channel_shows_the_square_that_excites_it() -> None:
    pixels = np.full((2, 40, 40, 3), 200, np.uint8)
    pixels[1, 20:30, 10:20] = (0, 0, 255)
    table = pd.DataFrame({"image_id": ["a", "b"], "lesion_id": ["a", "b"]})
    train = Images(pixels, np.array([0, 1]), table, ("mel", "nv"))
    judged = {"auroc": 0.8, "low": None, "high": None}
    excited = {"channel": 5, "label": "nv", "rows": [1], "values": [9.0], "places": [2 * 4 + 1]}
    found = {
        "table": [{"layer": "stem", "label": "nv"} | judged],
        "depths": [{"layer": "stem", "frozen": True, "field": 10} | judged],
        "shown": [[excited, excited | {"channel": 6}]],
        "shapes": [[7, 4, 4]],
    }
    picture = {"picture": base64.b64encode(b"jpeg").decode(), "value": 12.0}
    (view,) = layer_views(found, [[picture]], train)
    assert (view.name, view.field, view.size, view.auroc) == ("stem", 10, (7, 4, 4), (0.8, None, None))
    first, second = view.channels
    assert (first.number, first.picture, first.picture_value, first.value) == (5, b"jpeg", 12.0, 9.0)
    assert second.picture is None
    (patch,) = first.patches
    assert (patch.image_id, patch.label) == ("b", "nv")
    assert read(patch.patch).mean((0, 1)) == pytest.approx([0, 0, 255], abs=4)
    assert read(patch.whole).shape == (40, 40, 3)


def test_thumbnails_are_of_what_is_shown_alone(ingested: Path) -> None:
    names = read_table(ingested / "images.parquet", split="val")["image_id"].tolist()
    found = thumbnails_of(ingested, [case(0, 0, names[0])], [Near(name, "nv", 0.9) for name in names[:2]])
    assert set(found) == set(names[:2])
    assert max(read(found[names[0]]).shape) == 144
    assert max(read(found[names[1]]).shape) == 64


def test_pictures_keep_or_lose_their_form() -> None:
    picture = np.zeros((400, 800, 3), np.uint8)
    assert read(given_picture(picture)).shape == (160, 320, 3)
    assert stretched(picture, 30).shape == (30, 30, 3)
