"""The embed stage against its trunk alone, on tensors that are already in memory.

    python benchmarks/embedding.py [--cut CUT] [--images 1500]

The stage reads views from a file and writes activations to another; both sides run the same graph at the same
batch size, in turns, in one process. A ratio of 1 means that reading and writing cost nothing. Decoding and
augmenting are a stage before, so that another trunk does not repeat them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dermtune.backbone import load_backbone
from dermtune.params import read_params
from dermtune.shards import create_array
from dermtune.stages.embed import embed_files
from dermtune.trunk import onnx_function, onnx_graph, resolve_device, runner_maker, torch_function

TURNS = 5


def main() -> None:
    """Print images per second of both, and their ratio."""
    params = read_params(Path("params.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cut", type=int, default=params.backbone.cut)
    parser.add_argument("--images", type=int, default=1500)
    chosen = parser.parse_args()
    backbone = params.backbone.model_copy(update={"cut": chosen.cut})
    size, batch = backbone.input_size, params.embed.batch_size
    device = resolve_device(params.embed.device, key="embed.device")
    rng = np.random.default_rng(0)
    resident = rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    batches = chosen.images // batch
    trunk, dtype = load_backbone(backbone).trunk, params.embed.dtype
    run = runner_maker(trunk, input_size=size, dtype=dtype, device=device)()
    shape = trunk.output_shape(size)

    def run_alone() -> None:
        for _ in range(batches):
            bare(there)
        if device != "cpu":
            torch.cuda.synchronize()

    if device == "cpu":
        bare, there = onnx_function(onnx_graph(trunk, input_size=size, dtype=dtype)), resident
    else:
        bare = torch_function(trunk, dtype=dtype, device=device)
        there = torch.from_numpy(resident).to(device)
    alone, stage = [], []
    with tempfile.TemporaryDirectory() as folder:
        views, out = Path(folder, "views.npy"), Path(folder, "activations")
        with create_array(views, (batches * batch, size, size, 3), "uint8") as array:
            for _ in range(batches):
                array.append(resident)
        for _ in range(TURNS):
            alone.append(_seconds(run_alone))
            stage.append(_seconds(lambda: embed_files(params.embed, lambda: run, [views], shape, out)))
    print(f"cut {chosen.cut}, {size} px, {batches} batches of {batch}, {device}; the median of {TURNS} turns")
    rates = [batches * batch / statistics.median(seconds) for seconds in (alone, stage)]
    for name, rate in zip(("already in memory", "embed, from file to file"), rates, strict=True):
        print(f"  {name}: {rate:.0f} images/s")
    print(f"ratio: {rates[1] / rates[0]:.2f}")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
