import itertools

import pytest
import timm
from torch import Tensor, nn

from dermtune.backbone import Tail, Trunk, load_backbone
from dermtune.chain import chain_of
from dermtune.network_size import size_of
from dermtune.params import Params
from dermtune.studies.networks import Network, make_networks

SIZE, CLASSES = 64, 5


@pytest.fixture(scope="module")
def networks(params: Params) -> dict[str, Network]:
    config = params.backbone.model_copy(update={"input_size": SIZE})
    return {network.name: network for network in make_networks(config, classes=CLASSES, dropout=0.3)}


def test_sizes_are_as_counted_by_hand(networks: dict[str, Network]) -> None:
    linear = size_of(networks["linear"].trunk, networks["linear"].tail(0), input_size=SIZE)
    assert linear.multiply_adds == 3 * SIZE**2 * CLASSES
    assert linear.parameters == linear.trained == linear.unshared == 3 * SIZE**2 * CLASSES + CLASSES
    cnn = size_of(networks["cnn"].trunk, networks["cnn"].tail(0), input_size=SIZE)
    widths = (3, 16, 32, 64, 128)
    layers = [9 * one * other for one, other in itertools.pairwise(widths)]
    places = [(SIZE >> depth) ** 2 for depth in range(4)]
    head = 128 * CLASSES
    assert cnn.parameters == sum(layers) + sum(widths[1:]) + head + CLASSES
    assert cnn.multiply_adds == sum(a * b for a, b in zip(layers, places, strict=True)) + head
    biased = [layer + width for layer, width in zip(layers, widths[1:], strict=True)]
    assert cnn.unshared == sum(a * b for a, b in zip(biased, places, strict=True)) + head + CLASSES


def test_a_linear_layer_that_sees_a_map_works_at_each_place() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 8)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.inner(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    trunk = Trunk([], (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    size = size_of(trunk, Tail([Places()], 8, CLASSES, dropout=0.0, seed=0), input_size=4)
    assert size.multiply_adds == 16 * 3 * 8 + 8 * CLASSES
    assert size.unshared == 16 * (3 * 8 + 8) + 8 * CLASSES + CLASSES


def test_the_cut_moves_work_from_one_part_to_the_other(params: Params) -> None:
    found = []
    for cut in (0, 4, 7):
        network = load_backbone(params.backbone.model_copy(update={"cut": cut}))
        tail = network.tail(CLASSES, dropout=0.1, seed=0).train()
        found.append(size_of(network.trunk, tail, input_size=SIZE))
        assert tail.training
        assert all(not layer._forward_hooks for layer in tail.modules())
    assert len({(size.parameters, size.multiply_adds, size.unshared) for size in found}) == 1
    trained = [size.trained for size in found]
    assert trained == sorted(trained, reverse=True)
    works = [size.trained_multiply_adds for size in found]
    assert works == sorted(works, reverse=True)
    assert works[0] == found[0].multiply_adds
    assert works[-1] < found[0].multiply_adds


def test_attention_counts_and_so_do_embeddings() -> None:
    model = timm.create_model("test_vit", num_classes=0)
    model.set_input_size(img_size=(SIZE, SIZE))
    parameters = sum(one.numel() for one in model.parameters())
    units = chain_of(model, name="test_vit", input_size=SIZE).units
    trunk = Trunk(units[:3], (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    size = size_of(trunk, Tail(units[3:], 64, CLASSES, dropout=0.0, seed=0), input_size=SIZE)
    patches, width = (SIZE // 16) ** 2, 64
    tokens = patches + 1
    block = tokens * (4 + 2 * 3) * width**2 + 2 * tokens**2 * width
    assert size.multiply_adds == patches * 3 * 16**2 * width + 6 * block + width * CLASSES
    assert size.trained_multiply_adds == 4 * block + width * CLASSES
    assert size.parameters == parameters + width * CLASSES + CLASSES
