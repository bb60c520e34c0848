"""Only a graph that keeps the contract is run, and it can reach nothing outside itself."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from dermtune_bundle.errors import BundleError
from dermtune_bundle.graph import Graph

MakeGraph = Callable[..., bytes]


def test_an_image_of_any_size_gives_probabilities_embedding_and_activation_map(make_graph: MakeGraph) -> None:
    graph = Graph(make_graph(), threads=1)
    for height, width in [(32, 32), (50, 70)]:
        image = np.full((height, width, 3), (200, 100, 0), np.uint8)
        output = graph.run(image)
        exponents = np.exp([2.0, 1.0, 0.0])
        assert np.allclose(output.probabilities, exponents / exponents.sum(), atol=1e-6)
        assert np.allclose(output.embedding, [200, 100, 0])
        assert output.activation_map.shape == (3, height, width)
        assert {value.dtype for value in vars(output).values()} == {np.dtype(np.float32)}


def test_a_graph_knows_its_number_of_classes(make_graph: MakeGraph) -> None:
    assert Graph(make_graph()).num_classes == 3


def test_a_graph_opens_from_a_file(tmp_path: Path, make_graph: MakeGraph) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make_graph())
    assert Graph.open(path).num_classes == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent\.onnx: No such file"):
        Graph.open(tmp_path / "absent.onnx")


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x09" * 50])
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"x\.onnx: not an ONNX model"):
        Graph(data, name="x.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "input"}, "expected one input, image: uint8"),
        ({"dtype": onnx.TensorProto.FLOAT}, "expected one input, image: uint8"),
        (
            {"probabilities": "chances"},
            "expected float32 outputs probabilities, logits, embedding, activation_map",
        ),
        ({"axes": (2, 3)}, "expected probabilities of shape .* with a fixed K"),
    ],
)
def test_a_graph_of_another_contract_is_refused(
    make_graph: MakeGraph, change: dict[str, object], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        Graph(make_graph(**change))


@pytest.mark.parametrize(
    "image",
    [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8), np.zeros((40, 40, 3), np.float32)],
)
def test_pixels_of_another_shape_or_dtype_are_a_programmers_error(
    make_graph: MakeGraph, image: np.typing.NDArray[np.uint8]
) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        Graph(make_graph()).run(image)


def test_a_graph_that_fails_while_running_says_on_what(make_graph: MakeGraph) -> None:
    needs_48_pixels = onnx.ModelProto.FromString(make_graph())
    needs_48_pixels.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 48
    with pytest.raises(BundleError, match=r"model\.onnx: fails on an image of shape \(40, 47, 3\)"):
        Graph(needs_48_pixels.SerializeToString()).run(np.zeros((40, 47, 3), np.uint8))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_no_answer(make_graph: MakeGraph, scale: float) -> None:
    model = onnx.ModelProto.FromString(make_graph())
    next(tensor for tensor in model.graph.initializer if tensor.name == "scale").float_data[0] = scale
    with pytest.raises(BundleError, match=r"model\.onnx: gives impossible numbers"):
        Graph(model.SerializeToString()).run(np.full((40, 40, 3), 100, np.uint8))


def test_a_graph_that_need_not_end_is_refused(make_graph: MakeGraph) -> None:
    helper, kinds = onnx.helper, onnx.TensorProto
    again = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", kinds.INT64, []),
            helper.make_tensor_value_info("go", kinds.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", kinds.BOOL, [])],
    )
    loops, calls = (onnx.ModelProto.FromString(make_graph()) for _ in range(2))
    loops.graph.node.append(helper.make_node("Loop", ["", ""], [], body=again))
    node = helper.make_node("Identity", ["x"], ["y"])
    opset = [helper.make_opsetid("", 18)]
    calls.functions.append(helper.make_function("ours", "f", ["x"], ["y"], [node], opset))
    for model in (loops, calls):
        with pytest.raises(BundleError, match="with loops, branches or functions"):
            Graph(model.SerializeToString())


@pytest.mark.parametrize("location", ["weights.bin", "../secrets/weights.bin", "{absolute}"])
def test_a_graph_whose_weights_lie_in_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_graph: MakeGraph, location: str
) -> None:
    for folder in (tmp_path / "here", tmp_path / "secrets"):
        folder.mkdir()
        (folder / "weights.bin").write_bytes(np.float32(0.01).tobytes())
    monkeypatch.chdir(tmp_path / "here")
    model = onnx.ModelProto.FromString(make_graph())
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "scale")
    scale.ClearField("float_data")
    scale.data_location = onnx.TensorProto.EXTERNAL
    where = location.format(absolute=tmp_path / "secrets" / "weights.bin")
    for key, value in {"location": where, "offset": "0", "length": "4"}.items():
        scale.external_data.add(key=key, value=value)
    with pytest.raises(BundleError, match="not an ONNX model"):
        Graph(model.SerializeToString())


FUZZ = """
import sys
import numpy as np
from dermtune_bundle.errors import BundleError
from dermtune_bundle.graph import Graph

model, seed, count = open(sys.argv[1], "rb").read(), int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(seed)
image = np.full((40, 40, 3), 99, np.uint8)
for _ in range(count):
    changed = bytearray(model)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(len(changed))] = rng.integers(256)
    end = rng.choice([len(changed), rng.integers(1, len(changed))])
    try:
        Graph(bytes(changed[:end]), threads=1).run(image)
    except BundleError:
        pass
"""


def test_a_hostile_graph_is_an_error_and_nothing_worse(make_graph: MakeGraph, tmp_path: Path) -> None:
    """Bytes are changed at random; the checksums of a hostile bundle would fit them."""
    path = tmp_path / "model.onnx"
    path.write_bytes(make_graph())
    command = [sys.executable, "-c", FUZZ, str(path), "1", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
