"""One image: a bundle against eager torch, decode included; and `dermtune predict` from a cold start.

    python benchmarks/prediction.py BUNDLE IMAGE [--repeats 40]

Both sides decode the same file and run the same network (params.yaml's backbone; its weights do not matter
for the time), one image at a time on all cores. The cold start is the whole command as a new process.
"""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from dermtune.backbone import load_backbone
from dermtune.deployable import Deployable
from dermtune.params import read_params
from dermtune_bundle import Bundle, read_image


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("image", type=click.Path(path_type=Path, exists=True))
@click.option("--repeats", default=40, show_default=True)
def main(bundle: Path, image: Path, repeats: int) -> None:
    """Measure."""
    params = read_params(Path("params.yaml"))
    opened = Bundle.open(bundle)
    classes = len(opened.manifest.classes)
    network = load_backbone(params.backbone)
    module = Deployable(
        network.trunk,
        [network.tail(classes, dropout=0, seed=0)],
        input_size=params.backbone.input_size,
        references=1500,
    ).eval()

    def ours() -> None:
        opened.predict(read_image(image))

    def eager() -> None:
        with torch.inference_mode():
            module(torch.from_numpy(read_image(image))[None])

    for run in (ours, eager):
        _seconds(run, 5)
    one, other = _seconds(ours, repeats), _seconds(eager, repeats)
    print(f"a bundle: {1000 * one:.0f} ms an image; eager torch: {1000 * other:.0f} ms")
    cold = [_cold(bundle, image) for _ in range(5)]
    seconds, peak = np.median([a for a, _ in cold]), max(b for _, b in cold)
    print(f"dermtune predict, cold: {seconds:.2f} s, peak {peak >> 20} MiB")
    print(f"ratio: {other / one:.1f}")


def _seconds(run: Callable[[], None], repeats: int) -> float:
    """Median of many."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def _cold(bundle: Path, image: Path) -> tuple[float, int]:
    """Seconds and peak bytes of the whole command."""
    start = time.perf_counter()
    process = subprocess.Popen(
        ["dermtune", "predict", str(bundle), str(image), "--format", "jsonl"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit("dermtune predict fails")
    return seconds, usage.ru_maxrss << 10


if __name__ == "__main__":
    main()
