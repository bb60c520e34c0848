from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from dermtune.backbone import Trunk, load_backbone
from dermtune.params import Params
from dermtune.studies.channels import (
    Layer,
    activations_of,
    as_tensor,
    best_channels,
    box_around,
    class_aurocs,
    first_filters,
    layers_of,
    measure_channels,
    measure_responses,
    receptive_fields,
    strongest,
)
from dermtune.studies.images import Images

PIXELS = Trunk([], (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # no normalisation: 0 to 255 as they are


def convolution(weight: torch.Tensor, **named: int) -> Layer:
    made = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=False, **named)
    with torch.no_grad():
        made.weight.copy_(weight)
    return Layer("stem", nn.Sequential(made).requires_grad_(requires_grad=False), is_frozen=True)


def test_the_layers_are_the_network_with_the_stem_the_blocks_and_the_head(params: Params) -> None:
    network = load_backbone(params.backbone)
    tail = network.tail(3, dropout=0.0, seed=0).eval()
    layers = layers_of(network.trunk, tail)
    assert [layer.name for layer in layers] == ["stem", *(f"block {n}" for n in range(1, 8)), "head"]
    assert [layer.is_frozen for layer in layers] == [True] * 6 + [False] * 3
    pixels = 255 * torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        *_, last = activations_of(layers, network.trunk, pixels)
        torch.testing.assert_close(last, tail.units(network.trunk(pixels)))


def test_areas_are_those_of_scikit_learn_ties_and_missing_classes_too() -> None:
    rng = np.random.default_rng(1)
    values, labels = rng.integers(0, 5, (60, 4)).astype(float), rng.integers(0, 3, 60)
    found = class_aurocs(values, labels, 4)
    for column in range(4):
        for label in range(3):
            assert found[column, label] == pytest.approx(roc_auc_score(labels == label, values[:, column]))
    assert np.isnan(found[:, 3]).all()


def test_what_excites_most_comes_once_a_lesion() -> None:
    values = np.array([1.0, 9.0, 8.0, 7.0, 3.0])
    lesions = np.array(["a", "b", "b", "c", "a"], object)
    assert strongest(values, lesions, 9).tolist() == [1, 3, 4]
    assert strongest(values, lesions, 2).tolist() == [1, 3]


def test_the_largest_activation_is_where_it_is() -> None:
    weight = torch.zeros(2, 3, 1, 1)
    weight[0, 0], weight[1, 2] = 1, -1  # red; no blue
    pixels = np.full((1, 6, 4, 3), 50, np.uint8)
    pixels[0, 2, 3], pixels[0, 5, 1] = (200, 0, 90), (0, 0, 10)
    (found,) = measure_responses([convolution(weight)], PIXELS, pixels, description="x")
    np.testing.assert_array_equal(found.values, [[200, -10]])
    assert [divmod(place, 4) for place in found.places[0]] == [(2, 3), (5, 1)]
    assert found.shape == (6, 4)


def test_receptive_fields_are_as_by_hand() -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (2, 32, 32, 3), np.uint8)
    three = convolution(torch.ones(1, 3, 3, 3), padding=1)
    four = convolution(torch.ones(1, 3, 4, 4), stride=4)
    assert receptive_fields([three], PIXELS, pixels) == [3]
    assert receptive_fields([four], PIXELS, pixels) == [4]
    after = convolution(torch.ones(1, 1, 2, 2), stride=2)
    assert receptive_fields([four, after], PIXELS, pixels) == [4, 8]


def test_a_box_lies_around_its_place_and_in_the_image() -> None:
    assert box_around(5 * 10 + 2, (10, 10), 20, 100) == (45, 15)
    assert box_around(0, (10, 10), 20, 100) == (0, 0)
    assert box_around(99, (10, 10), 20, 100) == (80, 80)
    assert box_around(7, (4, 4), 100, 100) == (0, 0)


def test_the_channels_that_are_shown_tell_their_class_best_and_come_once() -> None:
    areas = np.array([[0.9, 0.5, np.nan, 0.6], [0.2, 0.6, np.nan, 0.8], [0.8, 0.7, np.nan, 0.1]])
    assert best_channels(areas, 5) == {0: 0, 1: 3, 2: 1}
    assert best_channels(areas, 2) == {0: 0, 1: 3}
    same = np.array([[0.9, 0.8], [0.1, 0.2]])
    assert best_channels(same, 5) == {0: 0}


def test_filters_are_stretched_around_grey() -> None:
    weight = torch.zeros(2, 3, 2, 2)
    weight[0, 0, 0, 0], weight[0, 1, 0, 0] = 0.5, -0.25
    found = first_filters([convolution(weight)])
    assert found.shape == (2, 2, 2, 3)
    assert found[0, 0, 0].tolist() == [255, 64, 128]
    assert (found[1] == 128).all()


def images_of(colors: list[tuple[int, int, int]], labels: list[int], prefix: str) -> Images:
    pixels = np.empty((len(colors), 8, 8, 3), np.uint8)
    for image, color in zip(pixels, colors, strict=True):
        image[:] = 20
        image[3:5, 5:7] = color
    names = [f"{prefix}{row}" for row in range(len(colors))]
    table = pd.DataFrame({"image_id": names, "lesion_id": names, "group_id": names})
    return Images(pixels, np.array(labels), table, ("bcc", "mel", "nv"))


def test_channels_are_chosen_on_training_and_judged_on_validation(params: Params) -> None:
    def shade(channel: int, number: int) -> tuple[int, int, int]:
        color = [30, 30, 30]
        color[channel] = 200 + number
        return (color[0], color[1], color[2])

    train = images_of([shade(n % 3, n) for n in range(24)], [n % 3 for n in range(24)], "t")
    # on validation, what was red or green lies the other way round
    swapped = [1, 0, 2]
    val = images_of([shade(n % 3, n) for n in range(30)], [swapped[n % 3] for n in range(30)], "v")
    weight = torch.eye(3)[:, :, None, None]
    config = params.study.microscope.model_copy(update={"channels": 2, "patches": 3})
    named = {"draws": 100, "seed": 1}
    found = measure_channels([convolution(weight)], PIXELS, train, val, config, **named)
    table = pd.DataFrame(found["table"]).set_index("label")
    assert table["channel"].to_dict() == {"bcc": 0, "mel": 1, "nv": 2}
    assert (table["trained"] == 1).all()
    assert table["auroc"].to_dict() == pytest.approx({"bcc": 0.25, "mel": 0.25, "nv": 1}, abs=0.03)
    assert table["high"]["mel"] < 0.6
    assert found["depths"][0]["auroc"] == pytest.approx(0.5, abs=0.02)
    (shown,) = found["shown"]
    assert [one["channel"] for one in shown] == [0, 1]
    assert shown[0]["rows"] == [21, 18, 15]
    assert shown[0]["places"] == [3 * 8 + 5] * 3
    assert found["shapes"] == [(3, 8, 8)]
    np.testing.assert_allclose(found["usual"][0]["mean"][0], (8 * 211.5 - 24 + 12 + 16 * 30) / 24, atol=1)
    other = replace(val, labels=train.labels[[n % 3 for n in range(30)]])
    again = measure_channels([convolution(weight)], PIXELS, train, other, config, **named)
    assert (pd.DataFrame(again["table"])["auroc"] == 1).all()


def test_pixels_become_channels_first() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert as_tensor(pixels)[1, 2, 3, 0] == pixels[1, 3, 0, 2]
