"""One image: a bundle against eager torch, decode included; and `dermtune predict` from a cold start.

    python benchmarks/prediction.py BUNDLE IMAGE [--repeats 100]

Both sides decode the same file and run the same network (params.yaml's backbone; its weights do not matter
for the time), one image at a time on all cores: each in a process of its own, by turns. The cold start is the
whole command as a new process.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

_ROUNDS = 5
# its own small process, so that the memory of the one that measures is not counted
_LAUNCH = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss << 10, status)
"""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("image", type=click.Path(path_type=Path, exists=True))
@click.option("--repeats", default=100, show_default=True, help="Of one process.")
@click.option("--side", type=click.Choice(["bundle", "torch"]), help="Time one side alone; used by itself.")
def main(bundle: Path, image: Path, repeats: int, side: str | None) -> None:
    """Measure."""
    if side:
        make = _with_bundle if side == "bundle" else _with_torch
        print(_seconds(make(bundle, image), repeats))
        return
    sides: dict[str, list[float]] = {"bundle": [], "torch": []}
    for _ in range(_ROUNDS):
        for name, found in sides.items():
            again = [sys.executable, __file__, bundle, image, "--repeats", str(repeats), "--side", name]
            found.append(float(subprocess.run(again, check=True, capture_output=True, text=True).stdout))
    ours, eager = (1000 * float(np.median(found)) for found in sides.values())
    print(f"a bundle: {ours:.1f} ms an image; eager torch: {eager:.1f} ms")
    cold = [_cold(bundle, image) for _ in range(_ROUNDS)]
    seconds, peak = np.median([seconds for seconds, _ in cold]), max(peak for _, peak in cold)
    print(f"dermtune predict, cold: {seconds:.2f} s, peak {peak >> 20} MiB")
    print(f"ratio: {eager / ours:.1f}")


def _with_bundle(bundle: Path, image: Path) -> Callable[[], object]:
    from dermtune_bundle import Bundle, read_image

    opened = Bundle.open(bundle)
    return lambda: opened.predict(read_image(image))


def _with_torch(bundle: Path, image: Path) -> Callable[[], object]:
    import torch

    from dermtune.backbone import load_backbone
    from dermtune.deployable import Deployable
    from dermtune.params import read_params
    from dermtune_bundle import Bundle, read_image

    backbone = read_params(Path("params.yaml")).backbone
    network = load_backbone(backbone)
    tails = [network.tail(len(Bundle.open(bundle).manifest.classes), dropout=0, seed=0)]
    module = Deployable(network.trunk, tails, input_size=backbone.input_size, references=1500).eval()

    def run() -> object:
        with torch.inference_mode():
            return module(torch.from_numpy(read_image(image))[None])

    return run


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """Median of many, once it is warm."""
    found = []
    for _ in range(repeats + 10):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return float(np.median(found[10:]))


def _cold(bundle: Path, image: Path) -> tuple[float, int]:
    """Seconds and peak bytes of the whole command."""
    command = ["dermtune", "predict", bundle, image, "--format", "jsonl"]
    launch = [sys.executable, "-c", _LAUNCH, *map(os.fspath, command)]
    told = subprocess.run(launch, check=True, capture_output=True, text=True).stdout.split()
    if told[2] != "0":
        raise SystemExit("dermtune predict fails")
    return float(told[0]), int(told[1])


if __name__ == "__main__":
    main()
