from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dermtune.backbone import Trunk
from dermtune.params import Params
from dermtune.studies import feature_visualization
from dermtune.studies.channels import Layer
from dermtune.studies.feature_visualization import Palette, paint_channels, visualize
from dermtune.studies.kept import Kept

PIXELS = Trunk([], (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))  # no normalisation: 0 to 255 as they are
IMAGES = np.random.default_rng(0).integers(60, 200, (4, 32, 32, 3), np.uint8)


def layer(weight: list[list[float]], bias: list[float], *after: nn.Module) -> Layer:
    """Each channel a weighted sum of red, green and blue."""
    convolution = nn.Conv2d(3, len(weight), 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor(weight)[:, :, None, None])
        convolution.bias.copy_(torch.tensor(bias))  # type: ignore[union-attr]
    units = nn.Sequential(convolution, *after).requires_grad_(requires_grad=False)
    return Layer("stem", units, is_frozen=True)


def test_a_picture_is_what_its_channel_wants() -> None:
    wants = layer([[1, -1, 0], [0, 0, 1]], [0, 0])
    pictures, values = visualize([wants], PIXELS, [0, 1], Palette.of(IMAGES), size=32, steps=40, seed=1)
    assert pictures.shape == (2, 32, 32, 3)
    red, green, blue = pictures.mean((1, 2)).T
    assert red[0] > green[0] + 40
    assert blue[1] > IMAGES[..., 2].mean() + 25
    seen = pictures.astype(float)
    assert values == pytest.approx([(seen[0, ..., 0] - seen[0, ..., 1]).max(), seen[1, ..., 2].max()])


def test_a_channel_that_answers_to_nothing_yet_still_shows_what_it_wants() -> None:
    silent = layer([[1, -1, 0]], [-1000], nn.Sequential(nn.BatchNorm2d(1).eval(), nn.ReLU6()))
    pictures, values = visualize([silent], PIXELS, [0], Palette.of(IMAGES), size=32, steps=40, seed=1)
    red, green, _ = pictures.mean((0, 1, 2))
    assert red > green + 40
    assert values == [0]  # as the layer itself answers


def test_a_non_linearity_within_a_layer_stays() -> None:
    bent = layer([[1, 0, 0]], [0], nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    with torch.no_grad():
        bent.units[2].weight.fill_(-1.0)  # type: ignore[union-attr,operator]
    kept = feature_visualization._without_last_bend([bent], PIXELS, 8)
    assert isinstance(kept.units[1], nn.ReLU)


def test_the_seed_alone_decides() -> None:
    wants = [layer([[1, -1, 0.5]], [0])]
    palette = Palette.of(IMAGES)
    one, same, other = (
        visualize(wants, PIXELS, [0], palette, size=32, steps=3, seed=seed)[0] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_palette_has_the_colours_of_its_images() -> None:
    rng = np.random.default_rng(2)
    light = rng.normal(0, 0.5, (1, 128, 128, 1)) + np.array([0.6, -0.1, -0.3])  # all three rise together
    pixels = np.round(255 / (1 + np.exp(-light - rng.normal(0, 0.05, light.shape)))).astype(np.uint8)
    palette = Palette.of(pixels)
    assert palette.middle.tolist() == pytest.approx([0.6, -0.1, -0.3], abs=0.02)
    drawn = palette.paint(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    logits = torch.logit(drawn / 255)[0].flatten(1)
    assert torch.corrcoef(logits).min() > 0.97
    assert logits.std(1).tolist() == pytest.approx([0.5] * 3, abs=0.03)


def test_pictures_that_were_made_before_are_not_made_again(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = params.study.microscope.model_copy(update={"painted": 1, "steps": 2, "picture": 32})
    first = layer([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 0])
    layers, channels = [first, layer([[1, -1, 0], [0, 1, 0]], [0, 0])], [[0], [1, 0]]

    def paint() -> list[object]:
        kept = Kept(tmp_path / "kept.json", made_from="x")
        return [*paint_channels(layers, PIXELS, channels, IMAGES, config, seed=1, kept=kept)]

    made = paint()
    assert [len(one) for one in made] == [0, 1]  # type: ignore[arg-type]
    monkeypatch.setattr(feature_visualization, "visualize", None)
    assert paint() == made
    monkeypatch.undo()
    assert visualize(layers, PIXELS, [], Palette.of(IMAGES), size=32, steps=2, seed=1)[1] == []
