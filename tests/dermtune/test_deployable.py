from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image

from dermtune.backbone import Backbone, Trunk, load_backbone
from dermtune.calibration import fit_calibrator, softmax
from dermtune.config import BackboneConfig
from dermtune.deployable import Deployable, check_parity, export_deployable, graph_numbers, set_numbers
from dermtune.errors import DataError
from dermtune.goals import Method
from dermtune.sources.ham10000 import ham10000
from dermtune.sources.ph2 import ph2
from dermtune_bundle.decode import decode, resize
from dermtune_bundle.graph import Graph

REAL = Path(__file__).parents[3] / "shared/data"
SIZES = [(30, 40), (64, 64), (150, 200), (427, 640), (900, 17)]


SHIFT = (0.1, -0.2, 0.3, 0.0)
REFERENCES = 40


def tiny_network() -> Backbone:
    """A convolution before the cut and one after it: what is about other parts is exported in a moment."""
    torch.manual_seed(0)
    trunk = Trunk([torch.nn.Conv2d(3, 8, 3, stride=4)], (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    return Backbone(trunk, [torch.nn.Conv2d(8, 16, 3, stride=2), torch.nn.ReLU()], 16)


def make(
    *,
    size: int = 64,
    scale: float = 0.7,
    tails: int = 2,
    test_views: int = 8,
    curves: bool = False,
    tiny: bool = False,
) -> Deployable:
    config = BackboneConfig(name="tf_efficientnet_lite0", weights="package", cut=5, input_size=size)
    network = tiny_network() if tiny else load_backbone(config)
    members = [network.tail(4, dropout=0.2, seed=1 + member) for member in range(tails)]
    with torch.no_grad():
        for member in members:
            member.classifier.weight.mul_(50)  # so that probabilities are not all a quarter
    module = Deployable(
        network.trunk,
        members,
        input_size=size,
        test_views=test_views,
        references=REFERENCES,
        curves=curves,
    )
    module.logit_scale.fill_(scale)
    module.logit_shift.copy_(torch.tensor(SHIFT))
    return module.eval()


@pytest.fixture(
    scope="module",
    params=[(1, 1, False), (2, 8, True)],
    ids=["single", "ensemble, test views and curves"],
)
def module(request: pytest.FixtureRequest) -> Deployable:
    tails, test_views, curves = request.param
    return make(tails=tails, test_views=test_views, curves=curves)


@pytest.fixture(scope="module")
def exported(module: Deployable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_deployable(module, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"], "one file, no .data beside"
    for name in (b"site-packages", b"deployable.py"):
        assert name not in path.read_bytes(), "nothing of the machine that made it"
    return path


@pytest.fixture(scope="module")
def graph(exported: Path) -> Graph:
    return Graph.open(exported)


def image(height: int, width: int) -> np.ndarray:
    """A photograph, cropped, or repeated where it is too small."""
    photo = load_sample_image("flower.jpg")
    return np.resize(photo, (height, width, 3)) if height > len(photo) else photo[:height, :width].copy()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_graph_gives_torchs_outputs_for_images_of_any_size(
    module: Deployable, graph: Graph, height: int, width: int
) -> None:
    pixels = image(height, width)
    found = graph.run(pixels)
    with torch.inference_mode():
        probabilities, logits, embedding, activation_map, distance = (
            output[0].numpy() for output in module(torch.from_numpy(pixels)[None])
        )
    assert np.abs(found.probabilities - probabilities).max() < 1e-4
    assert np.ptp(probabilities) > 0.1
    assert np.allclose(found.logits, logits, atol=1e-3)
    assert np.allclose(found.embedding, embedding, atol=1e-3)
    assert np.allclose(found.activation_map, activation_map, atol=1e-3)
    assert found.distance == pytest.approx(distance, abs=1e-4)
    assert check_parity(module, graph, [pixels]) < 1e-4


def test_the_activation_map_adds_up_to_the_logits() -> None:
    module = make()
    with torch.inference_mode():
        probabilities, logits, _, activation_map, _ = module(torch.from_numpy(image(150, 200))[None])
    bias = torch.stack([tail.classifier.bias for tail in module.tails]).mean(0)
    assert torch.allclose(activation_map.sum((2, 3)) + bias, logits, atol=1e-4)
    assert torch.allclose((logits * 0.7 + torch.tensor(SHIFT)).softmax(1), probabilities, atol=1e-5)


def test_the_distance_is_that_to_the_fifth_nearest_reference() -> None:
    module, pixels = make(test_views=1), torch.from_numpy(image(64, 64))[None]
    with torch.inference_mode():
        _, _, embedding, _, distance = module(pixels)
        unit = embedding[0] / embedding[0].norm()
        others = torch.nn.functional.normalize(torch.randn(len(unit), REFERENCES), dim=0)
        others[:, :3] = unit[:, None]  # three twins do not make it near
        module.reference.copy_(others)
        assert module(pixels)[4] == pytest.approx(1 - float((unit @ others).sort().values[-5]), abs=1e-5)
        module.reference[:, 10:12] = unit[:, None]
        assert module(pixels)[4] == pytest.approx(0, abs=1e-5)
    assert 0 < distance < 2


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_the_graph_calibrates_as_the_calibrator_does(tmp_path: Path, method: Method) -> None:
    """Numbers that are fitted on what the exported graph says are put into it, and into the module."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (300, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits / 2)])
    calibrator = fit_calibrator(logits, labels, method=method, shift=np.array(SHIFT))
    module = make(tails=1, test_views=1, curves=method == "isotonic", tiny=True)
    export_deployable(module, tmp_path / "model.onnx")
    set_numbers(module, tmp_path / "model.onnx", graph_numbers(calibrator))
    pixels = image(64, 64)
    with torch.inference_mode():
        (tail,) = module.tails
        raw = tail(module.trunk(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())).numpy()
    found = Graph.open(tmp_path / "model.onnx").run(pixels).probabilities
    assert found == pytest.approx(calibrator(raw)[0], abs=1e-4)
    assert check_parity(module, Graph.open(tmp_path / "model.onnx"), [pixels]) < 1e-4


def test_test_views_are_the_means_of_the_turned_image() -> None:
    """Of the eight symmetries: the answer is the same for each of them, and maps turn with the image."""
    module, single = make(test_views=8), make(test_views=1)
    pixels = torch.from_numpy(image(64, 64))[None]  # square, and of the network's size: turns are exact
    turned = [
        torch.rot90(flipped, turns, (1, 2)) for flipped in (pixels, pixels.flip(2)) for turns in range(4)
    ]
    with torch.inference_mode():
        probabilities, _, embedding, activation_map, _ = module(pixels)
        # but for a constant, which the softmax takes out
        logits = torch.stack([single(other)[0].log() for other in turned])
        expected = logits.mean(0).softmax(1)
        assert torch.allclose(probabilities, expected, atol=1e-5)
        assert not torch.allclose(probabilities, single(pixels)[0], atol=1e-3)
        assert torch.allclose(
            embedding, torch.stack([single(other)[2] for other in turned]).mean(0), atol=1e-4
        )
        again, _, _, turned_map, _ = module(torch.rot90(pixels, 1, (1, 2)))
    assert torch.allclose(again, probabilities, atol=1e-5)
    assert torch.allclose(turned_map, torch.rot90(activation_map, 1, (2, 3)), atol=1e-4)


def test_an_ensemble_averages_its_tails_logits() -> None:
    both = make(tails=2, test_views=1, scale=1.0)
    pixels = torch.from_numpy(image(64, 64))[None]
    with torch.inference_mode():
        activations = both.trunk(pixels.permute(0, 3, 1, 2).float())
        one, other = (tail(activations) for tail in both.tails)
        expected = ((one + other) / 2 + torch.tensor(SHIFT)).softmax(1)
        assert not torch.allclose(one, other, atol=1e-2)
        assert torch.allclose(both(pixels)[0], expected, atol=1e-5)


def test_training_and_shipping_see_the_same_pixels() -> None:
    """Views are resized with Pillow, the graph resizes by itself: they may differ by rounding alone."""
    module, pixels = make(tails=1, test_views=1), image(427, 640)
    with torch.inference_mode():
        shipped = module(torch.from_numpy(pixels)[None])[0]
        view = torch.from_numpy(resize(pixels, 64)).permute(2, 0, 1)[None].float()
        (tail,) = module.tails
        trained = (tail(module.trunk(view)) * 0.7 + torch.tensor(SHIFT)).softmax(1)
    assert torch.allclose(shipped, trained, atol=0.02)


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data")
def test_the_graph_gives_torchs_probabilities_on_real_images_of_many_sizes(
    module: Deployable, graph: Graph
) -> None:
    listed = [*ham10000(REAL / "ham10000")[::500], *ph2(REAL / "ph2")[::10]]
    there = [
        image
        for image in listed
        if any((REAL / folder / image.path).exists() for folder in ("ham10000", "ph2"))
    ]
    images = [decode(image.content(), name=image.image_id) for image in there]
    cropped = [pixels[:: 1 + index % 2, 3 + 7 * index :] for index, pixels in enumerate(images[:12])]
    shapes = {pixels.shape for pixels in [*images, *cropped]}
    assert len(shapes) > 10
    assert (
        check_parity(module, graph, [np.ascontiguousarray(pixels) for pixels in [*images, *cropped]]) < 1e-4
    )


def test_a_graph_of_other_weights_is_refused(graph: Graph) -> None:
    with pytest.raises(DataError, match="gives other probabilities than torch"):
        check_parity(make(scale=0.1), graph, [image(64, 64)])


def test_the_file_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        export_deployable(make(test_views=2, curves=True, tiny=True), tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
