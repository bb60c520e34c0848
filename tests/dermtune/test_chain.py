"""Networks of many families, taken apart: each is what it was, bit for bit, wherever it is cut."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from dermtune.backbone import Trunk
from dermtune.chain import chain_of, require_maps
from dermtune.errors import ConfigError
from dermtune.onnx_export import export_onnx

Model = Any  # timm ships no type for its networks
SIZE = 64
BLOCKS = {
    "tf_efficientnet_lite0": 7,
    "tf_efficientnetv2_b0": 6,
    "efficientnetv2_rw_t": 6,
    "mobilenetv3_small_050": 6,
    "resnet18": 4,
    "regnetx_002": 5,
    "convnext_atto": 4,
    "convnextv2_atto": 4,
    "test_convnext": 4,
    "vit_tiny_patch16_224": 12,
    "vit_small_patch14_reg4_dinov2": 12,
    "test_vit": 6,
    "test_vit2": 8,
    "test_vit3": 9,
    "test_vit4": 9,
    "test_vit_relpos": 9,
    "test_mambaout": 4,
}
HEAD_NORMS = {
    "convnext_atto",
    "convnextv2_atto",
    "test_convnext",
    "test_vit2",
    "test_vit4",
    "test_vit_relpos",
}


def make(name: str) -> tuple[Any, int]:
    """The network with random weights, in which no norm does nothing, and the side of an image for it."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.shape[0] == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    size = 56 if "patch14" in name else SIZE
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(size, size))
    return model, size


def map_by_timm(model: Model, image: Tensor) -> Tensor:
    """The last feature map (N, C, h, w), in the way that timm has for it."""
    if hasattr(model, "patch_embed"):
        found: Tensor = model.forward_intermediates(image, indices=1, norm=True, intermediates_only=True)[-1]
        return found
    features: Tensor = model.forward_features(image)
    return features.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features


@pytest.mark.parametrize("name", BLOCKS)
def test_a_chain_is_the_network_bit_for_bit_at_every_cut(name: str) -> None:
    model, size = make(name)
    image = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = map_by_timm(model, image)
        pooled = model.forward_head(model.forward_features(image), pre_logits=True)
    chain = chain_of(model, name=name, input_size=size)
    assert len(chain.blocks_end) - 1 == BLOCKS[name]
    units = chain.units[: -1 if name in HEAD_NORMS else None]
    for cut in chain.blocks_end:
        trunk = Trunk(units[:cut], (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
        with torch.inference_mode():
            activations = trunk(image)
            assert activations.ndim == 4
            assert torch.equal(nn.Sequential(*units[cut:])(activations), expected)
    if name in HEAD_NORMS:
        mean = expected.mean((2, 3), keepdim=True)
        with torch.inference_mode():
            assert torch.allclose(chain.units[-1](mean).flatten(1), pooled, atol=1e-5), "the head's own norm"
            assert chain.units[-1](expected).shape == expected.shape


@pytest.mark.parametrize("name", ["tf_efficientnetv2_b0", "convnext_atto", "test_vit"])
def test_blocks_are_those_that_timm_names(name: str) -> None:
    model, size = make(name)
    stages = {info["module"]: model.get_submodule(info["module"]) for info in model.feature_info}
    chain = chain_of(model, name=name, input_size=size)
    blocks = [chain.units[end - 1] for end in chain.blocks_end[1:]]
    for path, stage in stages.items():
        if "." in path:  # EfficientNets name their stem as well
            assert any(stage in block.modules() for block in blocks), path


def test_every_weight_is_in_one_unit_and_none_is_left_over() -> None:
    model, size = make("test_vit3")
    kept = sum(one.numel() for name, one in model.named_parameters() if not name.startswith("attn_pool"))
    units = chain_of(model, name="test_vit3", input_size=size).units
    assert sum(one.numel() for unit in units for one in unit.parameters()) == kept


def test_what_needs_maps_is_told_of_layers_that_have_tokens() -> None:
    for name in ("test_mambaout", "test_convnext"):
        model, size = make(name)
        require_maps(chain_of(model, name=name, input_size=size).units, what="this study")
    model, size = make("test_vit")
    with pytest.raises(ConfigError, match="this study needs a map of each layer"):
        require_maps(chain_of(model, name="test_vit", input_size=size).units, what="this study")


def test_a_graph_of_each_part_gives_what_torch_gives(tmp_path: Path) -> None:
    model, size = make("test_vit")
    units = chain_of(model, name="test_vit", input_size=size).units
    given = torch.randn(3, 3, size, size)
    for part in (nn.Sequential(*units[:4]), nn.Sequential(*units[4:])):
        path = tmp_path / "part.onnx"
        batch = torch.export.Dim.DYNAMIC
        export_onnx(part.eval(), given[:2], path, dynamic={0: batch}, inputs=["x"], outputs=["y"])
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        with torch.inference_mode():
            expected = part(given)
        assert np.abs(session.run(["y"], {"x": given.numpy()})[0] - expected.numpy()).max() < 1e-4
        given = expected.clone()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("vit_small_patch16_dinov3", 32, "no plain chain of blocks"),  # each block is also told of places
        ("hrnet_w18_small", 64, "cannot be cut at 64 pixels"),  # in four branches
        ("levit_128s", 224, "tokens that are no map of patches"),
    ],
)
def test_a_network_that_is_no_chain_is_refused(name: str, size: int, message: str) -> None:
    model = timm.create_model(name, num_classes=0)
    with pytest.raises(ConfigError, match=f"backbone.name: {name} .*{message}"):
        chain_of(model, name=name, input_size=size)
