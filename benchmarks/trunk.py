"""The frozen trunk: ONNX Runtime against torch, on the same views, weights, cut and batch size.

    python benchmarks/trunk.py [--cut CUT] [--batches 12]

Both run in one process, in turns, so that a noisy machine slows both; the ratio is of the medians.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from dermtune.backbone import load_backbone
from dermtune.params import read_params
from dermtune.trunk import make_runner


def main() -> None:
    """Print images per second of both, and their ratio."""
    params = read_params(Path("params.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cut", type=int, default=params.backbone.cut)
    parser.add_argument("--batches", type=int, default=12)
    chosen = parser.parse_args()
    trunk = load_backbone(params.backbone.model_copy(update={"cut": chosen.cut})).trunk
    size, batch = params.backbone.input_size, params.embed.batch_size
    views = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    run = make_runner(trunk, input_size=size, dtype="float32", device="cpu")
    laid_out = trunk.to(memory_format=torch.channels_last)

    def in_torch() -> None:
        pixels = torch.from_numpy(views).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            laid_out(pixels)

    ways = {"ONNX Runtime": lambda: list(run([views])), "torch, channels last": in_torch}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(chosen.batches + 2):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn > 1:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"trunk up to cut {chosen.cut}, {size} px, batches of {batch}")
    for name, median in medians.items():
        print(f"  {name}: {batch / median:.0f} images/s")
    onnx, eager = medians.values()
    print(f"ratio: {eager / onnx:.2f}")


if __name__ == "__main__":
    main()
