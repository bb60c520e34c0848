"""Time, memory and disk of the stages, against images, views of each, and the depth of the cut.

    python benchmarks/scaling.py                              # all of it: about two hours on two cores
    python benchmarks/scaling.py --images 1000 3000           # less of it
    python benchmarks/scaling.py --plot-only --plot docs/images/scaling.png    # print and draw what there is

Images are drawn, as for benchmarks/ingest.py, 300 x 225 pixels. `dermtune ingest`, `augment`, `embed` and
`finetune` (one epoch) run one after the other, each as a process of its own, on params.yaml but for what is
varied. A line of runs.csv in the work folder tells what each took; a stage that has its line is not run
again, so that a run which was broken off goes on. What the stages wrote is removed when the last of its
size is done.

Seconds are those of processors, of a stage and its children, user and system: other work on the machine
changes them less than those of the clock, which are in the table too. Memory is what they hold at most at one
time, looked at ten times a second, without the pages of files that are mapped: the system takes those back
when it needs them. Slopes are of what comes on top of the smallest size, which is nearly all start-up, at
those sizes where that is at least a quarter more.
"""

import argparse
import csv
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
from ingest import draw, write_table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from ruamel.yaml import YAML
from scipy.stats import linregress

from dermtune.figures import BLUE, GREEN, VERMILION, note_below, styled, write_figure

STAGES = ("ingest", "augment", "embed", "finetune")
LOOKS = dict(
    zip(STAGES, ((BLUE, "o"), (VERMILION, "s"), (GREEN, "D"), ("#111827", "^")), strict=True)
)  # as Okabe and Ito
PICTURE = (300, 225)  # pixels
LEAST_GROWTH = 0.25  # of the smallest size
EVERY = 0.1  # seconds between two looks at the memory


@dataclass(frozen=True)
class Run:
    """What a stage took; the choices that do not bear on it are 0."""

    stage: str
    images: int
    views: int
    cut: int
    seconds: float
    """Of processors."""
    clock: float
    mebibytes: float
    megabytes: float
    """On the disk."""


class Choice(NamedTuple):
    """One way through the pipeline."""

    images: int
    views: int
    cut: int

    def of(self, stage: str) -> "Choice":
        """As far as the stage depends on it."""
        if stage == "ingest":
            return Choice(self.images, 0, 0)
        return self if stage in {"embed", "finetune"} else Choice(self.images, self.views, 0)

    def folder(self, work: Path, stage: str) -> Path:
        """Where the stage writes."""
        return work / str(self.images) / "-".join([stage, *map(str, self.of(stage)[1:])])


def choices_of(options: argparse.Namespace) -> list[Choice]:
    """The three series, each choice once, those of one size together and the smaller sizes first."""
    base = options.base
    series = [Choice(images, 1, options.cut) for images in options.images]
    series += [Choice(base, views, options.cut) for views in options.views]
    series += [Choice(base, 1, cut) for cut in options.cuts]
    return sorted(set(series))


def read_runs(path: Path) -> list[Run]:
    """What is done."""
    if not path.is_file():
        return []
    types = {field.name: field.type for field in fields(Run)}
    with path.open(newline="") as file:
        return [
            Run(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)
        ]


def add_run(run: Run, path: Path) -> None:
    """Append a line."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        lines = csv.DictWriter(file, [field.name for field in fields(Run)])
        if is_new:
            lines.writeheader()
        lines.writerow(asdict(run))


def measure(choices: Sequence[Choice], work: Path, pixels: int) -> None:
    """Run what is not done, and remove what it wrote."""
    path = work / "runs.csv"
    for place, choice in enumerate(choices):
        done = {(run.stage, Choice(run.images, run.views, run.cut)) for run in read_runs(path)}
        if {(stage, choice.of(stage)) for stage in STAGES} - done:
            for stage in STAGES:
                is_done = (stage, choice.of(stage)) in done
                if is_done and (stage == "finetune" or (choice.folder(work, stage) / "done").exists()):
                    continue
                run = measure_stage(stage, choice, work, pixels)
                (choice.folder(work, stage) / "done").touch()
                if not is_done:  # or else it was run for what it writes
                    add_run(run, path)
                    print(f"{stage}: {run}", flush=True)
            for stage in ("embed", "finetune"):
                shutil.rmtree(choice.folder(work, stage), ignore_errors=True)
        if place + 1 == len(choices) or choices[place + 1].images != choice.images:
            shutil.rmtree(work / str(choice.images), ignore_errors=True)


def measure_stage(stage: str, choice: Choice, work: Path, pixels: int) -> Run:
    """Run a stage as a process of its own."""
    params, source = write_params(choice, work, pixels), source_of(choice, work)
    if stage == "ingest" and not source.exists():
        draw_images(source, choice.images)
    images, views, activations, out = (choice.folder(work, name) for name in STAGES)
    kept = work / "finetune.safetensors"
    arguments = {
        "ingest": ["--out", images],
        "augment": ["--images", images, "--out", views],
        "embed": ["--views", views, "--out", activations],
        "finetune": ["--images", images, "--activations", activations, "--checkpoint", kept, "--out", out],
    }[stage]
    written = choice.folder(work, stage)
    shutil.rmtree(written, ignore_errors=True)
    seconds, clock, peak = watch(["dermtune", stage, "--params", params, *arguments], work / "log.txt")
    size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
    known = choice.of(stage)
    return Run(stage, known.images, known.views, known.cut, seconds, clock, peak / (1 << 20), size / 1e6)


def source_of(choice: Choice, work: Path) -> Path:
    """Where the drawn images lie."""
    return work / str(choice.images) / "source"


def draw_images(source: Path, count: int) -> None:
    """A folder of images, and a table."""
    half = source.with_name("half")  # of what was broken off, nothing counts
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    tasks = [(f"{half}/I{number:07d}.jpg", number, *PICTURE) for number in range(count)]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(draw, tasks, chunksize=32))
    write_table(half, count)
    half.rename(source)


def write_params(choice: Choice, work: Path, pixels: int) -> Path:
    """params.yaml with what is varied."""
    yaml = YAML()
    params = yaml.load(Path(__file__).parents[1] / "params.yaml")
    params["ingest"] |= {"source": "listed", "path": str(source_of(choice, work))}
    params["augment"]["views"] = choice.views
    params["backbone"] |= {"cut": choice.cut, "input_size": pixels}
    params["finetune"] |= {"epochs": 1, "head_epochs": 0}
    path = work / "params.yaml"
    yaml.dump(params, path)
    return path


def watch(command: Sequence[str | Path], log: Path) -> tuple[float, float, int]:
    """Seconds of processors and of the clock, and most bytes held, of a command with its children."""
    before, started, peak = os.times(), time.perf_counter(), 0
    with log.open("a") as file:
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=file)
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"{command[1]} failed; {log} tells why. Mend it, and run this again: it goes on")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, time.perf_counter() - started, peak


def held(pid: int) -> int:
    """Bytes that a process and its children hold, without mapped files and what else may be shared."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for one in [top, *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                memory = one.memory_info()
                total += memory.rss - getattr(memory, "shared", 0)
    return total


class Slope(NamedTuple):
    """Of a line, with its standard error."""

    value: float
    error: float

    def shown(self, digits: int) -> str:
        """For people."""
        return f"{self.value:.{digits}f}" + (f" ± {self.error:.{digits}f}" if np.isfinite(self.error) else "")


def power(runs: pd.DataFrame, column: str) -> Slope | None:
    """The exponent with which a column grows with the images, on top of the smallest size; None: too few.

    What is little more than that is as much noise as growth, and a logarithm makes much of it.
    """
    first, more = runs.iloc[0], runs.iloc[1:]
    grown, images = more[column] - first[column], more["images"] - first["images"]
    is_more = (grown > LEAST_GROWTH * first[column]).to_numpy()
    return _fit(np.log(images[is_more]), np.log(grown[is_more]))


def line(runs: pd.DataFrame, column: str, along: str, *, per: float = 1) -> Slope | None:
    """What a column grows by, for each `per` along another."""
    return _fit(runs[along] / per, runs[column])


def _fit(x: pd.Series, y: pd.Series) -> Slope | None:
    if len(x) < 2:  # noqa: PLR2004 (a line has two ends)
        return None
    found = linregress(x, y)
    return Slope(found.slope, found.stderr if len(x) > 2 else np.nan)  # noqa: PLR2004 (two points lie on a line)


class Series(NamedTuple):
    """Runs along one choice, by stage."""

    images: dict[str, pd.DataFrame]
    views: dict[str, pd.DataFrame]
    cuts: dict[str, pd.DataFrame]


def series_of(runs: Sequence[Run], options: argparse.Namespace) -> Series:
    """What there is of the three series; a stage that a choice does not bear on is not in its series."""
    table = pd.DataFrame([asdict(run) for run in runs])

    def find(stage: str, choices: list[Choice]) -> pd.DataFrame:
        wanted = pd.DataFrame([choice.of(stage) for choice in choices]).drop_duplicates()
        found = wanted.merge(table[table["stage"] == stage], on=["images", "views", "cut"])
        return found.reset_index(drop=True)

    by_images = [Choice(images, 1, options.cut) for images in sorted(options.images)]
    by_views = [Choice(options.base, views, options.cut) for views in sorted(options.views)]
    by_cut = [Choice(options.base, 1, cut) for cut in sorted(options.cuts)]
    return Series(
        {stage: find(stage, by_images) for stage in STAGES},
        {stage: find(stage, by_views) for stage in STAGES[1:]},
        {stage: find(stage, by_cut) for stage in STAGES[2:]},
    )


def table_of(stages: dict[str, pd.DataFrame], along: str) -> list[str]:
    """The lines of a table in Markdown, a column a stage."""
    cells: dict[int, dict[str, str]] = {}
    for stage, runs in stages.items():
        for run in runs.itertuples():
            times = f"{run.seconds:,.0f} s ({run.clock:,.0f})"
            cells.setdefault(getattr(run, along), {})[stage] = (
                f"{times}, {run.mebibytes:,.0f} MiB, {run.megabytes:,.1f} MB"
            )
    rows = [[f"{value:,}", *(by.get(stage, "") for stage in stages)] for value, by in sorted(cells.items())]
    return [f"| {' | '.join(row)} |" for row in ([along, *stages], ["---"] * (1 + len(stages)), *rows)]


def report(series: Series) -> None:
    """Print the series and their slopes."""
    print("seconds of processors (of the clock), peak of memory, disk")
    for along, stages in zip(("images", "views", "cut"), series, strict=True):
        print("\n" + "\n".join(table_of(stages, along)))
    print()
    for stage, runs in series.images.items():
        slopes = {name: power(runs, name) for name in ("seconds", "clock", "megabytes")} if len(runs) else {}
        memory = line(runs, "mebibytes", "images", per=1000)
        parts = [f"{name} ~ images^{slope.shown(2)}" for name, slope in slopes.items() if slope]
        parts += [f"{memory.shown(1)} MiB for each 1,000 images"] if memory else []
        print(f"slope of {stage}: {', '.join(parts)}")
    for stage, runs in series.views.items():
        seconds, megabytes = (line(runs, name, "views") for name in ("seconds", "megabytes"))
        if seconds and megabytes:
            print(f"slope of {stage}: {seconds.shown(1)} s and {megabytes.shown(1)} MB for each view")


@styled
def plot(series: Series, *, pixels: int, base: int, cut: int) -> Figure:
    """Time and memory, or disk, along images, views and cut."""
    figure = Figure(figsize=(10, 10.5), layout="constrained")
    grid = figure.subplots(3, 2)
    panels = (
        (series.images, "images", "seconds", "Processor time against images", "seconds"),
        (series.images, "images", "mebibytes", "Peak memory against images", "MiB"),
        (series.views, "views", "seconds", "Processor time against views", "seconds"),
        (series.views, "views", "megabytes", "Disk against views", "MB"),
        (series.cuts, "cut", "seconds", "Processor time against the cut", "seconds"),
        (series.cuts, "cut", "megabytes", "Disk against the cut", "MB"),
    )
    for axes, (stages, along, column, title, unit) in zip(grid.flat, panels, strict=True):
        for stage, runs in stages.items():
            color, marker = LOOKS[stage]
            axes.plot(
                runs[along],
                runs[column],
                color=color,
                marker=marker,
                markersize=5,
                linewidth=1.4,
                label=stage,
            )
        caption = fill(caption_of(stages, along, column), 70)
        axes.set_title(title, pad=20 + 12 * caption.count("\n"))
        axes.set(ylabel=unit, xlabel={"cut": "blocks that are frozen (backbone.cut)"}.get(along, along))
        axes.text(0, 1.03, caption, transform=axes.transAxes, fontsize=7.5, color="#374151", linespacing=1.35)
        _scale(axes, along, column, sorted({int(x) for runs in stages.values() for x in runs[along]}))
        axes.legend(fontsize=8)
    note_below(
        figure,
        f"Drawn images of 300 x 225, views of {pixels} x {pixels} pixels; finetune: one epoch. Where not"
        f" varied: {base:,} images, 1 view, cut {cut}. ±: the slope's standard error.",
    )
    return figure


def caption_of(stages: dict[str, pd.DataFrame], along: str, column: str) -> str:
    """The slopes."""
    if along == "cut":
        return "0: embed stores pixels, finetune trains all; the last: finetune trains the head alone"
    parts = []
    for stage, runs in stages.items():
        if along == "images" and column == "seconds":
            slope = power(runs, column) if len(runs) else None
            parts += [f"{stage} {slope.shown(2)}"] if slope else []
        else:
            per = 1000 if along == "images" else 1
            slope = line(runs, column, along, per=per)
            parts += [f"{stage} {slope.shown(1)}"] if slope else []
    what = {
        ("images", "seconds"): "on top of start-up, time ~ images to the power of",
        ("images", "mebibytes"): "MiB for each 1,000 images:",
        ("views", "seconds"): "seconds for each view:",
        ("views", "megabytes"): "MB for each view:",
    }[along, column]
    unbroken = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts]
    return f"{what} {', '.join(unbroken)}" if parts else ""


def _scale(axes: Axes, along: str, column: str, values: list[int]) -> None:
    if along == "images":
        axes.set_xscale("log")
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", labelsize=7.5)
    else:
        axes.set_xticks(values)
    if column == "seconds" and along == "images":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        top = axes.dataLim.ymax
        axes.set_ylim(0, 1.08 * top if np.isfinite(top) else None)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--images", type=int, nargs="+", default=[100, 1000, 3000, 10_000, 30_000, 100_000],
        help="sizes, of one view; slopes are of what comes on top of the smallest",
    )  # fmt: skip
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="of each image")
    parser.add_argument("--cuts", type=int, nargs="+", default=[*range(8)], help="depths of the cut")
    parser.add_argument("--base", type=int, default=1000, help="images where views or the cut are varied")
    parser.add_argument("--cut", type=int, default=5, help="where images or views are varied")
    parser.add_argument("--pixels", type=int, default=64, help="side of a view")
    parser.add_argument("--work", type=Path, default=Path("/tmp/dermtune-scaling"), help="holds runs.csv")  # noqa: S108
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--plot-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.plot_only:
        measure(choices_of(options), options.work, options.pixels)
    runs = read_runs(options.work / "runs.csv")
    if not runs:
        raise SystemExit(f"{options.work / 'runs.csv'}: nothing measured yet; run without --plot-only")
    series = series_of(runs, options)
    report(series)
    if options.plot:
        write_figure(plot(series, pixels=options.pixels, base=options.base, cut=options.cut), options.plot)


if __name__ == "__main__":
    main()
