"""What is lost when a lesion is photographed badly, or a little from the side, and what augmentation saves.

Three classifiers (`judges.py`) see the same changed validation images. The test split is not read.

Source: Hendrycks and Dietterich, Benchmarking neural network robustness to common corruptions and
perturbations, ICLR 2019; Azulay and Weiss, Why do deep convolutional networks generalize so poorly to small
image transformations? JMLR 20, 2019.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from dermtune.calibration import decision_weights, fit_calibrator, prior_shift
from dermtune.checkpoint import Resume
from dermtune.csv_tables import write_tables
from dermtune.errors import ConfigError
from dermtune.figures import contact_sheet, write_figure
from dermtune.fingerprint import file_sha256
from dermtune.goals import Method
from dermtune.labels import lesion_class
from dermtune.metrics import Predictions
from dermtune.shards import PackedImages, places
from dermtune.sources.synthetic import synthetic
from dermtune.studies import RobustnessConfig
from dermtune.studies.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt, generator
from dermtune.studies.images import balanced_rows
from dermtune.studies.judges import TITLES, Judges, batched
from dermtune.studies.kept import Kept
from dermtune.studies.overview import Section, write_study
from dermtune.studies.robustness_measures import AS_IT_IS, Condition, Said, measure_robustness
from dermtune.studies.robustness_page import draw_robustness, render_robustness, verdict_on
from dermtune.studies.transformations import DIRECTIONS, rotate, scale, shift
from dermtune.table import read_table, table_sha256
from dermtune.tails import WEIGHTS, TrainedTails, read_tails
from dermtune_bundle.decode import decode, resize

if TYPE_CHECKING:
    from dermtune.params import Params

Pixels = NDArray[np.uint8]  # (H, W, 3)
Logits = NDArray[np.float64]  # (N, heads, K)
Change = Callable[[str, Pixels], Pixels]
"""From an image's id and its photograph to what the network sees of it."""
MOVEMENTS: Final = ("shift", "rotation", "scale")
_DIGITS = 4  # of the logits that are kept
_THUMBNAIL = 100  # pixels
_DRAWN = 40  # lesions, among which there is a melanoma


def run_robustness_study(
    params: "Params", *, images: Path, tails: Path, checkpoint: Path, out: Path
) -> dict[str, pd.DataFrame]:
    """Change validation images in all ways, ask the three classifiers, and write what is lost.

    Args:
        params: `study.robustness`, the network of `backbone`, the recipe of `finetune`, `calibrate.method`
            and `evaluate.bootstrap`.
        images: what ingest wrote.
        tails: what finetune wrote.
        checkpoint: file that keeps what is measured, until all is; trainings are kept beside it.
        out: the folder to write: a table each of what is returned, contact_sheet.png, and as `write_study`.

    Returns:
        The tables, as `measure_robustness` gives them.

    Raises:
        ConfigError: the backbone cannot be loaded, or an image cannot be moved as far as `shifts` asks.
        DataError: the images or tails are missing, damaged or do not belong together.
    """
    config, size = params.study.robustness, params.backbone.input_size
    if 4 * max(config.shifts) >= size:
        raise ConfigError(
            f"study.robustness.shifts: {max(config.shifts)} of {size} pixels (backbone.input_size);"
            " expected less than a quarter"
        )
    trained = read_tails(tails, backbone=params.backbone, images=images)
    sections = (params.backbone, params.finetune, config)
    made_from = {
        "images": table_sha256(images),
        "tails": file_sha256(tails / WEIGHTS),
        "params": [params.seed, *(section.model_dump() for section in sections)],
    }
    kept = Kept(checkpoint, made_from=made_from)
    resume = Resume(checkpoint.with_suffix(".safetensors"), kept.made_from)
    photographs = read_photographs(images, trained.classes, config, seed=params.seed)
    judges = Judges(trained, params, images, resume)
    logits = ask(judges, photographs, config, kept, size=size, seed=params.seed)
    said = interpret(logits, photographs, trained, method=params.calibrate.method)
    tables = measure_robustness(said, MOVEMENTS, draws=params.evaluate.bootstrap, seed=params.seed)
    _write(tables, photographs, out, seed=params.seed)
    kept.forget()
    resume.forget()
    return tables


@dataclass(frozen=True)
class Photographs:
    """Validation images as cameras gave them."""

    packed: PackedImages
    table: pd.DataFrame
    """All V rows of the image table, numbered from 0."""
    labels: NDArray[np.int64]
    """(V,)"""
    side: int
    """The shorter side of a photograph, at most."""
    rows: NDArray[np.intp]
    """(N,) those that are changed."""

    def read(self, row: int) -> Pixels:
        """One of all images, of at most the size of a photograph, in its own shape."""
        pixels = self.packed.decode(places(self.table.iloc[[row]])[0])
        height, width = pixels.shape[:2]
        share = self.side / min(height, width)
        if share >= 1:
            return pixels
        new = (round(share * width), round(share * height))
        return np.array(Image.fromarray(pixels).resize(new, Image.Resampling.BILINEAR))

    @cached_property
    def chosen(self) -> list[tuple[str, Pixels]]:
        """The images that are changed, with their ids."""
        return [(str(self.table["image_id"][row]), self.read(int(row))) for row in self.rows]


def read_photographs(
    images: Path, classes: Sequence[str], config: RobustnessConfig, *, seed: int
) -> Photographs:
    """The validation images, and which of them are changed.

    Raises:
        DataError: they are missing or damaged.
    """
    table = read_table(images / "images.parquet", split="val").reset_index(drop=True)
    labels = np.array([classes.index(label) for label in table["label"]], np.int64)
    rows = balanced_rows(labels, config.images, seed=seed)
    return Photographs(PackedImages(images), table, labels, config.side, rows)


def ask(
    judges: Judges, photographs: Photographs, config: RobustnessConfig, kept: Kept, *, size: int, seed: int
) -> dict[Condition, Logits]:
    """What all heads say of the chosen images in each condition, and of all images as they are.

    Args:
        judges: who is asked.
        photographs: what they see.
        config: how far images are moved.
        kept: what was said before.
        size: side of what the network sees, in pixels.
        seed: of all draws.

    Returns:
        Logits (N, heads, K) by condition; (V, heads, K) where nothing is changed.
    """
    count = len(photographs.rows)

    def look(name: str, seen: Iterator[Pixels], total: int) -> Any:  # noqa: ANN401 (lists in lists)
        return np.round(judges.ask(batched(seen), name, total), _DIGITS).tolist()

    plain = (resize(photographs.read(row), size) for row in range(len(photographs.table)))
    name, total = AS_IT_IS[0], len(photographs.table)
    logits = {AS_IT_IS: np.array(kept.get(name, partial(look, name, plain, total)))}
    for name, changes in all_changes(config, size=size, seed=seed).items():
        seen = (change(*one) for change in changes.values() for one in photographs.chosen)
        found = np.array(kept.get(name, partial(look, name, seen, len(changes) * count)))
        by_level = zip(changes, np.split(found, len(changes)), strict=True)
        logits |= {(name, level): one for level, one in by_level}
    return logits


def all_changes(config: RobustnessConfig, *, size: int, seed: int) -> dict[str, dict[float, Change]]:
    """All that is done to images, by name and by severity or distance; a movement starts at 0."""
    found: dict[str, dict[float, Change]] = {
        one.name: {severity: _artefact(one, severity, size, seed) for severity in SEVERITIES}
        for one in CORRUPTIONS
    }
    distances: tuple[Sequence[float], ...] = (config.shifts, config.angles, config.scales)
    for name, steps in zip(MOVEMENTS, distances, strict=True):
        found[name] = {
            float(step): _movement(name, step, size, max(config.shifts), seed) for step in (0.0, *steps)
        }
    return found


def _artefact(corruption: Corruption, severity: int, size: int, seed: int) -> Change:
    def change(image_id: str, pixels: Pixels) -> Pixels:
        return resize(corrupt(pixels, corruption, severity, image_id=image_id, seed=seed), size)

    return change


def _movement(name: str, step: float, size: int, margin: int, seed: int) -> Change:
    """To one side, which chance chooses for the image, whatever the distance."""

    def change(image_id: str, pixels: Pixels) -> Pixels:
        rng = generator(seed, image_id, name)
        x, y = DIRECTIONS[rng.integers(len(DIRECTIONS))]
        sign = int(rng.choice([-1, 1]))
        if name == "shift":
            return shift(pixels, size, margin, (x * int(step), y * int(step)))
        if name == "rotation":
            return resize(rotate(pixels, sign * step), size)
        return resize(scale(pixels, (1 + step / 100) ** sign), size)

    return change


def interpret(
    logits: Mapping[Condition, Logits], photographs: Photographs, trained: TrainedTails, *, method: Method
) -> Said:
    """What each classifier says in each condition, calibrated and named as the product does.

    Each has a calibration of its own, fitted on all validation images as they are. `first` is the first of
    the shipped tails, where they are several: what a single one without augmentation is compared with.
    """
    heads = logits[AS_IT_IS].shape[1]
    of = {"shipped": slice(heads - 2), "plain": slice(heads - 2, heads - 1), "probe": slice(heads - 1, heads)}
    if len(trained.tails) > 1:
        of["first"] = slice(1)
    shift_ = prior_shift(trained.frequencies, trained.class_balance)
    weights = decision_weights(trained.frequencies, trained.decision_balance)
    table, rows = photographs.table.iloc[photographs.rows], photographs.rows
    malignant = tuple(lesion_class(name).malignant for name in trained.classes)

    def said(own: slice) -> dict[Condition, Predictions]:
        means = {condition: found[:, own].mean(axis=1) for condition, found in logits.items()}
        calibrate = fit_calibrator(means[AS_IT_IS], photographs.labels, method=method, shift=shift_)
        means[AS_IT_IS] = means[AS_IT_IS][rows]
        chosen = {condition: calibrate(one) for condition, one in means.items()}
        return {
            condition: Predictions(
                tuple(trained.classes),
                probabilities,
                photographs.labels[rows],
                (probabilities * weights).argmax(1),
                table["lesion_id"].to_numpy(object),
                malignant,
                table["group_id"].to_numpy(object),
            )
            for condition, probabilities in chosen.items()
        }

    return {name: said(own) for name, own in of.items()}


def _write(tables: Mapping[str, pd.DataFrame], photographs: Photographs, out: Path, *, seed: int) -> None:
    write_tables(tables, out)
    sheet = show_artefacts(seed=seed)
    write_figure(sheet, out / "contact_sheet.png")
    lesions = photographs.table["lesion_id"].iloc[photographs.rows].nunique()
    note = (
        f"{len(photographs.rows):,} validation images of {lesions:,} lesions, the classes as equally often as"
        " they can be. Intervals: 95%, bootstrap over lesions and patients."
    )
    titles = {one.name: one.title for one in CORRUPTIONS}
    figure = draw_robustness(tables, titles, TITLES, note=note)
    verdict = verdict_on(tables, titles)
    page = render_robustness(tables, CORRUPTIONS, TITLES, figure, sheet, note=note, verdict=verdict)
    alt = "Balanced accuracy by artefact and severity, and how many images keep their class after a movement"
    write_study(out, page, figure, Section("Bad pictures, small movements", verdict, alt))


def show_artefacts(*, seed: int) -> Figure:
    """A drawn melanoma under each artefact: no patient's picture leaves the data."""
    drawn = next(image for image in synthetic(lesions=_DRAWN, seed=seed) if image.label == "mel")
    pixels = decode(drawn.content(), name=drawn.image_id)

    def row(corruption: Corruption) -> list[Pixels]:
        return [
            resize(corrupt(pixels, corruption, severity, image_id=drawn.image_id, seed=seed), _THUMBNAIL)
            for severity in (0, *SEVERITIES)
        ]

    titles = [one.title for one in CORRUPTIONS]
    return contact_sheet([row(one) for one in CORRUPTIONS], titles, "As it is, and at severities 1 to 5")
