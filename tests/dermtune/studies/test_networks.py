import pytest
import torch

from dermtune.network_size import Size, size_of
from dermtune.params import Params
from dermtune.studies.networks import NAMES, Network, make_networks

SIZE, CLASSES = 64, 5


@pytest.fixture(scope="module")
def networks(params: Params) -> dict[str, Network]:
    config = params.backbone.model_copy(update={"input_size": SIZE})
    return {network.name: network for network in make_networks(config, classes=CLASSES, dropout=0.3)}


def sized(network: Network) -> Size:
    return size_of(network.trunk, network.tail(0), input_size=SIZE)


def test_all_give_a_logit_a_class(networks: dict[str, Network]) -> None:
    assert tuple(networks) == NAMES
    pixels = 255 * torch.rand(2, 3, SIZE, SIZE)
    for network in networks.values():
        assert network.tail(0).eval()(network.trunk(pixels)).shape == (2, CLASSES)


def test_first_weights_depend_on_the_seed_alone(networks: dict[str, Network]) -> None:
    for network in networks.values():
        one, same, other = (network.tail(seed).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(value, same[name]) for name, value in one.items())
        assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_the_frozen_the_tail_and_the_whole_are_one_network(networks: dict[str, Network]) -> None:
    pixels = 255 * torch.rand(2, 3, SIZE, SIZE)
    with torch.inference_mode():
        seen = [
            networks[name].tail(0).eval().units(networks[name].trunk(pixels))
            for name in ("frozen", "tail", "whole")
        ]
    assert torch.allclose(seen[0], seen[1], atol=1e-4)
    assert torch.allclose(seen[0], seen[2], atol=1e-4)
    sizes = {name: sized(networks[name]) for name in NAMES}
    assert len({sizes[name].parameters for name in ("untrained", "frozen", "tail", "whole")}) == 1
    assert len({sizes[name].multiply_adds for name in ("untrained", "frozen", "tail", "whole")}) == 1
    assert sizes["frozen"].trained < sizes["tail"].trained < sizes["whole"].trained
