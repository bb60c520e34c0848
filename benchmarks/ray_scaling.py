"""How much faster two Ray workers are than one: the trunk over views, and the checks of ingest.

    python benchmarks/ray_scaling.py [--images 2000] [--workers 2]

Each worker has one core. The same pieces of work that the stages do, from file to file, after every process
has made what it needs; in turns, the median. What this machine itself allows is measured beside it: so many
processes that share nothing, each running the trunk on a batch in its memory. Cores that are two threads of
one, or share their memory's bandwidth, give less than twice one.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from dermtune.backbone import load_backbone
from dermtune.engine import ComputeConfig, engine
from dermtune.params import read_params
from dermtune.quality import make_check
from dermtune.shards import create_array, create_rows
from dermtune.sources.synthetic import synthetic
from dermtune.stages.embed import Part, make_embed_part
from dermtune.trunk import onnx_function, onnx_graph, runner_maker

ROUNDS, TURNS = 2, 3


def main() -> None:
    """Print images a second of one worker and of several, and the efficiency."""
    params = read_params(Path("params.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    size, batch, dtype = params.backbone.input_size, params.embed.batch_size, params.embed.dtype
    trunk = load_backbone(params.backbone).trunk
    shape = trunk.output_shape(size)
    drawn = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    make = runner_maker(trunk, input_size=size, dtype=dtype, device="cpu", threads=1)
    drawings = [
        replace(image, content=partial(bytes, image.content())) for image in synthetic(lesions=40, seed=1)
    ]
    images = drawings * (chosen.images // len(drawings))
    counts = (1, chosen.workers)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as files:
        views = Path(folder, "views.npy")
        with create_array(views, (chosen.images, size, size, 3), "uint8") as array:
            for start in range(0, chosen.images, batch):
                array.append(drawn[: min(batch, chosen.images - start)])
        rows = files.enter_context(create_rows(Path(folder, "out.npy"), (chosen.images, *shape), dtype))
        step = batch * 4
        parts = [
            Part(views, rows, range(start, min(start + step, chosen.images)))
            for start in range(0, chosen.images, step)
        ]
        print(f"cut {params.backbone.cut}, {size} px; images a second, of 1 worker and of {chosen.workers}")
        bare = {
            count: _bare(onnx_graph(trunk, input_size=size, dtype=dtype), drawn, count) for count in counts
        }
        _report("the trunk alone, no Ray", bare)
        _report(
            "embed on Ray", _rates(partial(make_embed_part, params.embed, make), parts, counts, chosen.images)
        )
        _report("checks of ingest on Ray", _rates(make_check, images, counts, len(images), chunk=8))


def _report(what: str, rates: dict[int, float]) -> None:
    one, several = rates.values()
    workers = max(rates)
    efficiency = several / one / workers
    print(f"  {what}: {one:.0f}, {several:.0f}: {several / one:.2f} times, efficiency {efficiency:.2f}")


def _rates(
    make: Callable[[], Callable], items: list, counts: tuple[int, ...], images: int, chunk: int = 1
) -> dict[int, float]:
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(ROUNDS):
        for count in counts:
            compute = ComputeConfig(engine="ray", workers=count, address="")
            with engine(compute, make, chunk=chunk) as run:
                list(run(items[: 4 * chunk * count]))
                for _ in range(TURNS):
                    began = time.perf_counter()
                    list(run(items))
                    seconds[count].append(time.perf_counter() - began)
    return {count: images / statistics.median(taken) for count, taken in seconds.items()}


def _bare(graph: bytes, drawn: np.ndarray, count: int, repeats: int = 30) -> float:
    context = get_context("spawn")
    barrier, taken = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=_loop, args=(graph, drawn, repeats, barrier, taken)) for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    seconds = [taken.get() for _ in workers]
    for worker in workers:
        worker.join()
    return count * repeats * len(drawn) / max(seconds)


def _loop(graph: bytes, drawn: np.ndarray, repeats: int, barrier: Barrier, taken: object) -> None:
    run = onnx_function(graph, threads=1)
    run(drawn)
    barrier.wait()
    began = time.perf_counter()
    for _ in range(repeats):
        run(drawn)
    taken.put(time.perf_counter() - began)


if __name__ == "__main__":
    main()
