from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from dermtune.onnx_export import export_onnx, replace_values


def test_one_quiet_file_with_an_open_batch_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()).eval()
    path = tmp_path / "module.onnx"
    batch = {0: torch.export.Dim.DYNAMIC}
    export_onnx(module, torch.zeros(2, 3, 8, 8), path, dynamic=batch, inputs=["x"], outputs=["y"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["module.onnx"]
    assert capfd.readouterr() == ("", "")
    assert str(Path(__file__).parent).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    (y,) = session.run(["y"], {"x": x})
    assert np.allclose(y, module(torch.from_numpy(x)).detach().numpy(), atol=1e-5)

    weight = np.zeros((2, 3, 3, 3), np.float32)
    replace_values(path, {"0.weight": weight})
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})
    bias = module[0].bias.detach().numpy()
    assert np.allclose(y, np.maximum(bias, 0)[:, None, None])
    with pytest.raises(KeyError, match=r"no 0\.weight of shape \(3,\)"):
        replace_values(path, {"0.weight": weight[0, 0, 0]})
