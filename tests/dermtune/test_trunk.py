from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from dermtune import trunk as trunk_module
from dermtune.backbone import Trunk, load_backbone
from dermtune.config import BackboneConfig
from dermtune.errors import ConfigError, DataError
from dermtune.trunk import (
    Fingerprint,
    engine_of,
    make_runner,
    reproducible,
    resolve_device,
    within_memory,
)

VIEWS = {"images_sha256": "one table", "views": 2}
BACKBONE = BackboneConfig(name="tf_efficientnet_lite0", weights="package", cut=3, input_size=64)


def fingerprint(trunk: Trunk) -> Fingerprint:
    return Fingerprint.of(trunk, BACKBONE, dtype="float16", engine="onnxruntime", views=VIEWS)


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return load_backbone(BACKBONE).trunk


@pytest.fixture
def views() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_onnx_runtime_gives_what_torch_gives(trunk: Trunk, views: np.ndarray, dtype: str) -> None:
    run = make_runner(trunk, input_size=64, dtype=dtype, device="cpu")
    (found,) = run([views])
    with torch.inference_mode():
        expected = trunk(torch.from_numpy(views).permute(0, 3, 1, 2).float()).numpy()
    assert found.dtype == np.dtype(dtype)
    tolerance = 1e-4 if dtype == "float32" else 4e-3
    assert np.abs(found - expected).max() < tolerance * max(1, np.abs(expected).max())
    batches = list(run([views[:1], views[1:]]))
    assert [len(batch) for batch in batches] == [1, 4]
    assert np.array_equal(np.concatenate(batches), found), "any batch size gives the same"


def test_torchs_runner_gives_the_same_batches_in_order(trunk: Trunk, views: np.ndarray) -> None:
    """What runs on a GPU, run on the CPU; torch calls a CPU by this name as well."""
    run = make_runner(trunk, input_size=64, dtype="float32", device="cpu:0")
    found = np.concatenate(list(run([views[:2], views[2:4], views[4:]])))
    (expected,) = make_runner(trunk, input_size=64, dtype="float32", device="cpu")([views])
    assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())
    assert list(run([])) == []


def test_other_code_changes_the_fingerprint(trunk: Trunk, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = fingerprint(trunk)
    monkeypatch.setattr(trunk_module, "_MODULES", ("dermtune.backbone", "dermtune.training"))
    other = fingerprint(trunk)
    assert mine.code_sha256 != other.code_sha256
    with pytest.raises(DataError, match=r"code_sha256: stored .* re-run embed"):
        mine.require(trunk, BACKBONE, images_sha256="one table")


def test_a_cut_of_zero_is_normalisation_alone(views: np.ndarray) -> None:
    whole = load_backbone(BACKBONE.model_copy(update={"cut": 0})).trunk
    (found,) = make_runner(whole, input_size=64, dtype="float32", device="cpu")([views])
    assert np.allclose(found, views.transpose(0, 3, 1, 2) / 127.5 - 1, atol=1e-5)


def test_activations_of_anything_else_are_refused(trunk: Trunk, tmp_path: Path) -> None:
    path = tmp_path / "activations.json"
    path.write_text(fingerprint(trunk).to_json())
    stored = Fingerprint.read(path)
    stored.require(trunk, BACKBONE, images_sha256="one table")

    for change in ({"cut": 4}, {"input_size": 96}, {"weights_sha256": "0" * 64}, {"shape": (1, 2, 3)}):
        with pytest.raises(DataError, match=f"{next(iter(change))}: stored .* re-run embed"):
            replace(stored, **change).require(trunk, BACKBONE, images_sha256="one table")
    with pytest.raises(DataError, match="images_sha256: stored one table, now another"):
        stored.require(trunk, BACKBONE, images_sha256="another")


def test_one_changed_weight_changes_the_fingerprint(trunk: Trunk) -> None:
    other = load_backbone(BACKBONE).trunk
    mine = fingerprint(trunk)
    assert mine == fingerprint(other)
    with torch.no_grad():
        next(other.units.parameters()).view(-1)[0] += 1e-3
    assert mine != fingerprint(other)


@pytest.mark.parametrize("content", [None, "no json", "[]", "3", '{"cut": 3, "shape": [1], "views": {}}'])
def test_a_missing_or_foreign_fingerprint_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "activations.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="re-run embed"):
        Fingerprint.read(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named() -> None:
    assert resolve_device("auto", key="embed.device") == resolve_device("cpu", key="embed.device") == "cpu"
    with pytest.raises(ConfigError, match=r"embed\.device: .* torch sees no GPU"):
        resolve_device("cuda", key="embed.device")


def test_the_engine_says_how_a_gpu_rounds() -> None:
    assert engine_of("cpu", "float16") == f"onnxruntime {onnxruntime.__version__}"
    assert engine_of("cuda", "float16") == f"torch {torch.__version__}, bfloat16"
    assert engine_of("cuda", "float32") == f"torch {torch.__version__}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_gives_what_the_cpu_gives(trunk: Trunk, views: np.ndarray) -> None:
    (expected,) = make_runner(trunk, input_size=64, dtype="float32", device="cpu")([views])
    for dtype, tolerance in (("float32", 1e-3), ("float16", 5e-2)):
        found = np.concatenate(
            list(make_runner(trunk, input_size=64, dtype=dtype, device="cuda")([views[:2], views[2:]]))
        )
        assert np.abs(found - expected).max() < tolerance * max(1, np.abs(expected).max())
        again = list(make_runner(trunk, input_size=64, dtype=dtype, device="cuda")([views[:2], views[2:]]))
        assert np.array_equal(np.concatenate(again), found)
    fingerprint(trunk)  # the trunk itself stays where it is


def test_only_a_gpu_is_told_to_be_reproducible_and_only_for_a_while() -> None:
    told = torch.are_deterministic_algorithms_enabled
    with reproducible("cpu"):
        assert not told()
    with reproducible("cuda:0"):
        assert told()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        with reproducible("cuda:0"):
            pass
        assert told()
    assert not told()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_batch_that_finds_no_room_goes_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def double(rows: torch.Tensor) -> torch.Tensor:
        seen.append(len(rows))
        if len(rows) > 3:
            raise torch.OutOfMemoryError
        return 2 * rows

    careful = within_memory(double)
    rows = torch.arange(10)
    assert torch.equal(careful(rows), 2 * rows)
    assert torch.equal(careful(rows[:5]), 2 * rows[:5])
    assert seen == [10, 5, 2, 2, 2, 2, 2, 2, 2, 1], "it is not tried again"
    assert "no room for 5 images on the GPU; going on with 2 at once" in caplog.text

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(DataError, match="no room for the network and one image"):
        within_memory(fail)(rows)
