"""Ingest against the bare decoder, its memory by the number of images, and what 1% new images cost.

    python benchmarks/ingest.py [--images 1000 10000] [--size 600 450]

Images are drawn (JPEG, smooth colours and noise), a lesion each, in a folder with a table. The bare
decoder is Pillow on as many processes as ingest has; both read the same files in one run. Memory is the peak
of the main process, of which there is one; each worker holds a few images.
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image


def draw(task: tuple[str, int, int, int]) -> None:
    """Write a JPEG."""
    path, seed, width, height = task
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 230, (6, 8, 3), dtype=np.uint8))
    coarse = coarse.resize((width, height), Image.BICUBIC)
    noise = rng.normal(0, 6, (-(-height // 2), -(-width // 2), 3)).repeat(2, 0).repeat(2, 1)[:height, :width]
    pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def decode(path: str) -> int:
    """As a bare decoder."""
    with Image.open(path) as image:
        return int(np.asarray(image.convert("RGB")).shape[0])


def ingest_once(source: str, out: str, notes: str) -> None:
    """In a process of its own, whose peak of memory is then ingest's."""
    from dermtune.config import read_yaml
    from dermtune.stages.ingest import IngestConfig, ingest

    values = read_yaml(Path(__file__).parents[1] / "params.yaml")["ingest"]
    config = IngestConfig.model_validate(values | {"source": "listed", "path": source})
    started = time.perf_counter()
    ingest(config, seed=1, out=Path(out), notes=Path(notes))
    seconds = time.perf_counter() - started
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def timed(source: Path, out: Path, notes: Path) -> tuple[float, float]:
    """Seconds and mebibytes of one run of ingest."""
    command = [sys.executable, __file__, "--once", str(source), str(out), str(notes)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, mebibytes = map(float, done.stdout.split()[-2:])
    return seconds, mebibytes


def write_table(source: Path, count: int) -> None:
    """Three classes, a lesion an image."""
    with (source / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("image_id", "lesion_id", "label"))
        rows.writerows((f"I{n:07d}", f"L{n}", ("mel", "nv", "bcc")[n % 3]) for n in range(count))


def measure(count: int, size: tuple[int, int], folder: Path) -> None:
    """Print a line."""
    source = folder / f"{count}"
    source.mkdir()
    more = count // 100
    tasks = [(str(source / f"I{n:07d}.jpg"), n, *size) for n in range(count + more)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(draw, tasks[:count], chunksize=32))
        started = time.perf_counter()
        list(pool.map(decode, [task[0] for task in tasks[:count]], chunksize=8))
        bare = time.perf_counter() - started
        write_table(source, count)
        out, notes = folder / f"out{count}", folder / f"notes{count}.json"
        first, peak = timed(source, out, notes)
        again, _ = timed(source, out, notes)
        list(pool.map(draw, tasks[count:], chunksize=32))
    write_table(source, count + more)
    added, _ = timed(source, out, notes)
    print(
        f"{count:>7} images: bare decoder {count / bare:6.0f} images/s; ingest {count / first:6.0f}"
        f" ({bare / first:.2f} of it), peak {peak:.0f} MiB; again {again:.1f} s ({again / first:.1%}), with"
        f" {more} new ones {added:.1f} s ({added / first:.1%})"
    )


def main() -> None:
    """Measure, or run ingest once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--size", type=int, nargs=2, default=[600, 450], help="width and height")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        ingest_once(*options.once)
        return
    print(f"{os.cpu_count()} cores, {options.size[0]}x{options.size[1]} pixels")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.images:
            measure(count, tuple(options.size), Path(folder))


if __name__ == "__main__":
    main()
