import sys

import numpy as np
import pytest
import torch

from dermtune.backbone import Backbone, Tail, load_backbone
from dermtune.errors import ConfigError
from dermtune.params import Params
from dermtune.studies.attribution import grad_cam, hires_cam, occlusion, units_to_finer_map

CLASSES = 3


@pytest.fixture(scope="module")
def network(params: Params) -> Backbone:
    return load_backbone(params.backbone)


@pytest.fixture(scope="module")
def tail(network: Backbone) -> Tail:
    return network.tail(CLASSES, dropout=0.0, seed=1).eval()


@pytest.fixture(scope="module")
def activations(network: Backbone) -> torch.Tensor:
    pixels = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    return network.trunk(pixels)


def test_on_the_last_layer_both_are_the_class_activation_map(tail: Tail, activations: torch.Tensor) -> None:
    with torch.no_grad():
        features = tail.units(activations)
        ours = torch.einsum("fhw,kf->khw", features[0], tail.classifier.weight) / features[0, 0].numel()
    for target in range(CLASSES):
        for method in (grad_cam, hires_cam):
            found = method([], tail, features, target)
            np.testing.assert_allclose(found, ours[target].numpy(), atol=1e-6)
    assert ours.min() < 0, "signs stay"


def test_on_an_earlier_layer_hires_cam_weighs_place_by_place(tail: Tail, activations: torch.Tensor) -> None:
    """Against the gradient that torch gives; Grad-CAM takes its mean, and so differs."""
    features = activations.clone().requires_grad_()
    tail(features)[0, 1].backward()
    assert features.grad is not None
    by_hand = (features.grad * features).detach()[0].sum(0).numpy()
    averaged = (features.grad.mean((2, 3), keepdim=True) * features).detach()[0].sum(0).numpy()
    units = [*tail.units]
    np.testing.assert_allclose(hires_cam(units, tail, activations, 1), by_hand, atol=1e-5)
    np.testing.assert_allclose(grad_cam(units, tail, activations, 1), averaged, atol=1e-5)
    assert np.abs(by_hand - averaged).max() > 1e-3


def test_the_finer_map_is_the_last_that_is_larger(network: Backbone, tail: Tail) -> None:
    count = units_to_finer_map(network.trunk, tail, input_size=64)
    units = torch.nn.Sequential(*network.trunk.units, *tail.units)
    pixels = torch.zeros(1, 3, 64, 64)
    assert units[:count](pixels).shape[2:] == (4, 4)
    assert units[: count + 1](pixels).shape[2:] == units(pixels).shape[2:] == (2, 2)


def test_occlusion_is_as_by_hand() -> None:
    """A network that sees mean brightness; a white square on black, as large as what slides over it."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:32, 40:56] = 255

    def brightness(batch: np.ndarray) -> np.ndarray:
        assert batch.dtype == np.uint8
        return np.stack([np.zeros(len(batch)), batch.mean((1, 2, 3), dtype=np.float64)], axis=1)

    found = occlusion(brightness, image, 1, window=0.25)
    # along one side, squares that start one step apart hide 0, a half, all, a half, 0 of the white one,
    # and a place's value is the mean of the two that cover it
    down, across = np.zeros(8), np.zeros(8)
    down[1:5] = across[4:8] = [0.25, 0.75, 0.75, 0.25]
    across[7] = 0.5  # on the rim, which one square covers
    np.testing.assert_allclose(found, np.outer(down, across) * image.mean(), atol=1e-3)
    assert np.abs(occlusion(brightness, image, 0, window=0.25)).max() == 0


def test_without_captum_it_says_what_to_install(
    tail: Tail, activations: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(ConfigError, match=r"pip install 'dermtune\[study\]'"):
        grad_cam([*tail.units], tail, activations, 0)
