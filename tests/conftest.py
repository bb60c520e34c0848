"""What several test modules share: a tiny real graph and bundle, and an S3-compatible server."""

import io
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from dermtune_bundle.bundle import write_bundle
from dermtune_bundle.manifest import (
    NOTICE,
    Calibration,
    Diagnosis,
    GoldenCase,
    InputSpec,
    Limits,
    Manifest,
    OperatingPoint,
)

MakeGraph = Callable[..., bytes]


@pytest.fixture(scope="session")
def make_graph() -> MakeGraph:
    """Builds a model.onnx that classifies by mean colour: red is the first class, green the second, …"""
    onnx = pytest.importorskip("onnx", reason="the tiny graph is built with onnx")
    helper, kinds = onnx.helper, onnx.TensorProto

    def make(
        *,
        image: str = "image",
        dtype: int = kinds.UINT8,
        probabilities: str = "probabilities",
        classes: int = 3,
        axes: tuple[int, int] = (1, 2),
    ) -> bytes:
        nodes = [
            helper.make_node("Cast", [image], ["float"], to=kinds.FLOAT),
            helper.make_node("Gather", ["float", "first"], ["colors"], axis=3),
            helper.make_node("ReduceMean", ["colors", "axes"], ["embedding"], keepdims=0),
            helper.make_node("Mul", ["embedding", "scale"], ["logits"]),
            helper.make_node("Softmax", ["logits"], [probabilities], axis=1),
            helper.make_node("Transpose", ["colors"], ["activation_map"], perm=[0, 3, 1, 2]),
            helper.make_node("ReduceMax", ["embedding", "features"], ["brightest"], keepdims=0),
            helper.make_node("Mul", ["brightest", "scale"], ["distance"]),
        ]
        outputs = {
            probabilities: ["N", "K"],
            "logits": ["N", "K"],
            "embedding": ["N", "F"],
            "activation_map": ["N", "K", "H", "W"],
            "distance": ["N"],
        }
        graph = helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(image, dtype, ["N", "H", "W", 3])],
            [helper.make_tensor_value_info(name, kinds.FLOAT, shape) for name, shape in outputs.items()],
            [
                helper.make_tensor("first", kinds.INT64, [classes], range(classes)),
                helper.make_tensor("axes", kinds.INT64, [2], axes),
                helper.make_tensor("features", kinds.INT64, [1], [1]),
                helper.make_tensor("scale", kinds.FLOAT, [1], [0.01]),
            ],
        )
        opset = [helper.make_opsetid("", 18)]
        content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
        return content

    return make


@pytest.fixture(scope="session")
def tiny_manifest() -> Manifest:
    return Manifest(
        schema_version=1,
        name="tiny",
        notice=NOTICE,
        classes=(
            Diagnosis("mel", "Melanoma", malignant=True),
            Diagnosis("nv", "Melanocytic nevus", malignant=False),
            Diagnosis("bcc", "Basal cell carcinoma", malignant=True),
        ),
        input=InputSpec(size=224, color="RGB", resize="none: a mean of colours"),
        quantization=None,
        calibration=Calibration("temperature", (0.8,) * 3, (0.0, -0.3, 0.1), (0.0, -0.4, 0.1), 0.52, 0.47),
        operating_points=(
            OperatingPoint("mel", "mel", 0.5, "sensitivity >= 0.90 on validation", 0.92, 0.81),
        ),
        coverage=0.9,
        limits=Limits(
            distance=2.6, sharpness=0.0, darkest=10.0, brightest=245.0, smallest=32, false_alarms=0.05
        ),
        golden=(GoldenCase("golden-0.png", (0.665241, 0.244728, 0.090031)),),  # softmax of 2, 1, 0
        lineage={"backbone": {"name": "mean colour", "cut": 0}, "images": {"train": {"mel": 7, "nv": 9}}},
        metrics={
            "auroc": {"macro": {"value": 0.9, "low": 0.8, "high": 0.95}},
            "balanced_accuracy": {"value": 0.7, "low": 0.6, "high": 0.8},
        },
    )


@pytest.fixture(scope="session")
def tiny_golden() -> bytes:
    """The image of the tiny bundle's golden case, a PNG."""
    file = io.BytesIO()
    Image.new("RGB", (56, 40), (200, 100, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def tiny_bundle(tmp_path: Path, make_graph: MakeGraph, tiny_manifest: Manifest, tiny_golden: bytes) -> Path:
    """A bundle's folder; with its graph, red images are mel, green ones nv and blue ones bcc."""
    folder = tmp_path / "bundle"
    files = {"golden-0.png": tiny_golden}
    write_bundle(
        folder, model=make_graph(), manifest=tiny_manifest, card="# Model card: tiny\n", further=files
    )
    return folder


@pytest.fixture(scope="session")
def swapped_profile() -> bytes:
    """A colour profile whose first channel is blue: who ignores it sees other colours than who made it."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = data.replace("sRGB".encode("utf-16-be"), "xxxx".encode("utf-16-be")).replace(b"sRGB", b"xxxx")
    return data.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3-compatible server on loopback.

    It answers one request at a time, for moto looks for an object and writes it in two steps; in S3 they are
    one.
    """
    moto = pytest.importorskip("moto.server", reason="moto is the S3-compatible server")
    from werkzeug.serving import make_server  # noqa: PLC0415 - it comes with moto

    application = moto.DomainDispatcherApplication(moto.create_backend_app)
    server = make_server("127.0.0.1", 0, application, request_handler=moto.MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket as s3://…; the environment says where it is, to processes that a test starts as well."""
    fsspec = pytest.importorskip("fsspec", reason="buckets are reached through fsspec")
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",  # nothing is asked of anyone but the server
        "AWS_CONFIG_FILE": str(tmp_path / "absent"),  # not this machine's own
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "absent"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    bucket = f"bucket-{uuid.uuid4().hex}"
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}"
