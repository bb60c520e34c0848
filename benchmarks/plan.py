"""A plan for many images on many GPUs, from what one run measured: bytes, operations, network, hours, cost.

    python benchmarks/plan.py [--data data] [--images 10000000] [--views 12] [--gpus 64]

--data is a finished run whose `dermtune study cost` was made on `--measured-cores` cores. Its figures are
first held against the formulas that the plan uses, so that a wrong formula shows; then they are used for
--images. What was not measured here is an option with a stated default: a GPU's bf16 peak, the share of it
that a network of small convolutions gets, networks and disks, prices; and that originals are larger
(--megabytes, --slower).
"""

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dermtune.shards import open_array, view_paths


@dataclass(frozen=True)
class Run:
    """What one run measured."""

    images: int
    trained: int
    """Training images."""
    validated: int
    tested: int
    views: int
    original: float
    """Bytes of an original, packed, with its print and outline."""
    pixels: int
    """Bytes of a view."""
    activation: int
    """Bytes of a view's activations."""
    frozen: int
    """Multiply-adds of the trunk, for an image."""
    learned: int
    """Of the tail."""
    parameters: int
    """Of the tail."""
    epochs: int
    seconds: dict[str, float]
    """Of each stage."""


def read_run(data: Path) -> Run:
    """Read what a run wrote, and hold its files against the formulas."""
    table = pd.read_parquet(data / "ingest/images.parquet")
    split = table["split"].value_counts()
    views, stored = view_paths(data / "augment"), view_paths(data / "embed")
    lineage = json.loads((data / "finetune/lineage.json").read_text())
    cost = json.loads((data / "study/cost/cost.json").read_text())
    size = lineage["size"]
    packed = sum(path.stat().st_size for path in (data / "ingest").iterdir())
    run = Run(
        images=len(table),
        trained=split["train"],
        validated=split["val"],
        tested=split["test"],
        views=len(views),
        original=packed / len(table),
        pixels=3 * lineage["backbone"]["input_size"] ** 2,
        activation=math.prod(lineage["activations"]["shape"])
        * np.dtype(lineage["activations"]["dtype"]).itemsize,
        frozen=size["multiply_adds"] - size["trained_multiply_adds"],
        learned=size["trained_multiply_adds"],
        parameters=size["trained"],
        epochs=len(pd.read_csv(data / "finetune/history.csv")),
        seconds={name: stage["seconds"] for name, stage in cost["stages"].items()},
    )
    rows = run.views * run.trained + run.validated
    print(f"The run: {run.images:,} images, {run.views} views, {run.epochs} epochs. Formula against file:")
    for name, paths, row in (("views", views, run.pixels), ("activations", stored, run.activation)):
        folder = paths[0].parent
        found = sum(open_array(path).nbytes for path in (*paths, folder / "val.npy"))
        print(f"  bytes of {name}: {rows:,} x {row:,} = {rows * row:,}; on disk {found:,}")
    print(f"  multiply-adds a second: embed {run.frozen * rows / run.seconds['embed'] / 1e9:.1f} G,", end=" ")
    steps = 3 * run.learned * run.trained * run.epochs
    print(f"finetune {steps / run.seconds['finetune'] / 1e9:.1f} G (forward and twice backward)")
    return run


def main() -> None:
    """Print the plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--measured-cores", type=int, default=2)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--megabytes", type=float, help="of an original; else as measured")
    parser.add_argument(
        "--slower", type=float, default=1, help="times as long on a core, for larger originals"
    )
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--cores", type=int, default=16, help="CPU cores beside each GPU")
    parser.add_argument("--peak", type=float, default=990, help="bf16 TFLOP/s of a GPU, as its maker says")
    parser.add_argument(
        "--share", type=float, default=0.05, help="of the peak, that small convolutions reach"
    )
    parser.add_argument("--disk", type=float, default=20, help="GB/s of the shared file system, in all")
    parser.add_argument("--network", type=float, default=25, help="GB/s of each GPU to the others")
    parser.add_argument("--batch", type=int, default=64, help="images a GPU and step")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--gpus-a-machine", type=int, default=8)
    parser.add_argument(
        "--compare",
        type=float,
        default=3.5e-8,
        help="seconds of a core to look for copies, for each image times each; from docs/scaling.md, as the"
        " share of ingest that grows so",
    )
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="price, with its cores")
    chosen = parser.parse_args()
    run = read_run(chosen.data)
    if chosen.megabytes:
        run = replace(run, original=chosen.megabytes * 1e6)
    trained = chosen.images * run.trained / run.images
    held_out = chosen.images * run.validated / run.images
    tested = chosen.images - trained - held_out
    rows = chosen.views * trained + held_out
    cores = chosen.gpus * chosen.cores
    flops = chosen.gpus * chosen.peak * 1e12 * chosen.share

    def core_seconds(stage: str, images: float) -> float:
        """Of one image, as measured."""
        return chosen.slower * run.seconds[stage] * chosen.measured_cores / images

    measured_rows = run.views * run.trained + run.validated
    bounds = {  # hours, by what bounds them
        "ingest": {
            "cores": chosen.images * core_seconds("ingest", run.images) / cores,
            "one writer, 1 GB/s": chosen.images * run.original / 1e9,
        },
        "ingest, looking for copies": {
            "one machine's cores": chosen.compare * chosen.images**2 / chosen.cores / chosen.gpus_a_machine,
            "all cores, did it use them": chosen.compare * chosen.images**2 / cores,
        },
        "augment": {
            "cores": rows * core_seconds("augment", measured_rows) / cores,
            "disk": (rows * run.pixels + (trained + held_out) * run.original) / chosen.disk / 1e9,
        },
        "embed": {
            "GPUs": 2 * rows * run.frozen / flops,
            "disk": rows * (run.pixels + run.activation) / chosen.disk / 1e9,
        },
        "finetune": {
            "GPUs": 2 * 3 * chosen.epochs * trained * run.learned / flops,
            "disk": chosen.epochs * trained * run.activation / chosen.disk / 1e9,
            "network": chosen.epochs
            * trained
            / (chosen.gpus * chosen.batch)
            * (2 * (chosen.gpus - 1) / chosen.gpus * 4 * run.parameters)
            / chosen.network
            / 1e9,
        },
        "evaluate": {"cores": tested * core_seconds("evaluate", run.tested) / cores},
    }
    print(f"\n{chosen.images:,} images, {chosen.views} views, {chosen.gpus} GPUs, {cores:,} cores")
    held = {
        "originals": chosen.images * run.original,
        "views": rows * run.pixels,
        "activations": rows * run.activation,
    }
    print("; ".join(f"{name} {size / 1e12:.1f} TB" for name, size in held.items()))
    print(f"views: {rows:,.0f}, of {2 * rows * run.frozen / 1e18:.2f} EFLOP")
    print("| stage | hours | bound by | what else it takes |\n| --- | --- | --- | --- |")
    hours = 0.0
    for stage, parts in bounds.items():
        slowest = max(parts, key=lambda name: parts[name])
        others = ", ".join(f"{name} {taken / 3600:.2g} h" for name, taken in parts.items() if name != slowest)
        hours += parts[slowest] / 3600
        print(f"| {stage} | {parts[slowest] / 3600:.2f} | {slowest} | {others} |")
    price = hours * chosen.gpus * chosen.gpu_hour
    print(f"| all | {hours:.1f} | | {price:,.0f} at {chosen.gpu_hour} a GPU hour |")


if __name__ == "__main__":
    main()
