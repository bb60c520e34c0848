"""What the layers respond to, and which images lie near each other in the network's eyes.

Channels are chosen by training images; validation images say how well a channel tells a class, and what lies
near what. The test split is not read.

Source: Zeiler and Fergus 2014, Visualizing and understanding convolutional networks, for the patches; Bau et
al. 2017, Network dissection, for the question what single channels tell.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.csv_tables import write_tables
from dermtune.errors import DataError
from dermtune.inference import Looked, look_at_images
from dermtune.metrics import Predictions, Sampled, auroc, estimate, macro, predictions_of, resample
from dermtune.shards import PackedImages, places
from dermtune.studies import MicroscopeConfig
from dermtune.studies.channels import Layer, first_filters, layers_of, measure_channels
from dermtune.studies.feature_visualization import paint_channels
from dermtune.studies.images import balanced_rows, read_images
from dermtune.studies.kept import Kept
from dermtune.studies.microscope_page import microscope_figure, render_microscope, verdict_on
from dermtune.studies.microscope_views import (
    Case,
    Given,
    Map,
    Near,
    given_picture,
    layer_views,
    through_layers,
    thumbnails_of,
    to_png_bytes,
)
from dermtune.studies.model import read_both
from dermtune.studies.neighbors import map_of, measure_agreement, nearest
from dermtune.studies.overview import Section, write_study
from dermtune.table import read_table, table_sha256
from dermtune.tails import TrainedTails
from dermtune_bundle.decode import decode
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import MALIGNANT, Contract

if TYPE_CHECKING:
    from dermtune.params import Params

SPACES: Final = ("whole", "trained", "frozen")
"""The embedding that the bundle compares images by, and its two parts."""


@dataclass(frozen=True)
class Microscope:
    """A trained network, as it was trained and as it is shipped, and the images that it is shown."""

    trained: TrainedTails
    graph: Graph
    contract: Contract
    folder: Path
    """What ingest wrote."""

    @property
    def layers(self) -> list[Layer]:
        """Of an ensemble, those of its first member."""
        return layers_of(self.trained.trunk, self.trained.tails[0])

    @property
    def classes(self) -> tuple[str, ...]:
        """K names, as the model's probabilities have them."""
        return tuple(known.name for known in self.contract.classes)


@dataclass(frozen=True)
class Followed:
    """The image that is followed through the layers."""

    name: str
    lesion: str
    label: str | None
    """None: unknown."""
    pixels: NDArray[np.uint8]
    """(H, W, 3), as decoded."""


def run_microscope_study(
    params: "Params",
    *,
    images: Path,
    tails: Path,
    model: Path,
    image: str | None,
    checkpoint: Path,
    out: Path,
) -> pd.DataFrame:
    """Look at the layers and at the map of images; write what is seen.

    Args:
        params: `study.microscope`, the network of `backbone`, and the draws of `evaluate.bootstrap`.
        images: what ingest wrote.
        tails: what finetune wrote.
        model: what calibrate wrote.
        image: id of a training or validation image, or a file, to be followed through the layers; None: of
            the malignant validation images the one whose malignant probability is in the middle.
        checkpoint: file that keeps what is measured, until all is.
        out: the folder to write: channels.csv, neighbors.csv, map.csv, and as `write_study`.

    Returns:
        As `measure_channels` gives its table.

    Raises:
        ConfigError: the backbone cannot be loaded.
        DataError: an input is missing, damaged or made from another one, or there is no such image.
        ImageError: the given file is no image that can be read.
    """
    config = params.study.microscope
    scope = Microscope(*read_both(params.backbone, images=images, tails=tails, model=model), images)
    given = read_followed(image, images) if image else None
    train, val = (
        read_images(images, split, params.backbone.input_size, most=config.images, seed=params.seed)
        for split in ("train", "val")
    )
    made_from = {
        "images": table_sha256(images),
        "model": scope.contract.to_json(),
        "given": given and [given.name, hashlib.sha256(given.pixels.tobytes()).hexdigest()],
        "params": [config.model_dump(), params.backbone.model_dump(), params.seed, params.evaluate.bootstrap],
    }
    kept = Kept(checkpoint, made_from=made_from)
    layers, trunk = scope.layers, scope.trained.trunk
    drawn = {"draws": params.evaluate.bootstrap, "seed": params.seed}
    found = kept.get("channels", lambda: measure_channels(layers, trunk, train, val, config, **drawn))
    near = kept.get("map", lambda: measure_map(scope, given, config, **drawn))
    channels = [[one["channel"] for one in shown] for shown in found["shown"]]
    painted = paint_channels(layers, trunk, channels, train.pixels, config, seed=params.seed, kept=kept)

    table, depths, agreement = (
        pd.DataFrame(rows) for rows in (found["table"], found["depths"], near["agreement"])
    )
    cases = [Case(**one | {"near": _nears(one["near"])}) for one in near["cases"]]
    given = given or read_followed(near["followed"]["name"], images)
    followed = Given(
        name=given.name,
        label=given.label,
        picture=given_picture(given.pixels),
        probabilities=near["followed"]["probabilities"],
        near=_nears(near["followed"]["near"]),
        layers=through_layers(
            given.pixels, layers, trunk, found["usual"], input_size=params.backbone.input_size
        ),
    )
    nears = [*followed.near, *(one for case in cases for one in case.near)]
    shown = Map(cases, scope.contract.classes, thumbnails_of(images, cases, nears))
    write_tables({"channels": table, "neighbors": agreement, "map": _map_table(cases)}, out)
    note = (
        f"{len(train.labels):,} training images of {train.lesion_count:,} lesions, {len(val.labels):,} of"
        f" {val.lesion_count:,} for validation; the map shows {len(cases):,} of these. 95% intervals by"
        " bootstrap over lesions."
    )
    verdict = verdict_on(agreement, depths, near["model"], neighbors=config.neighbors)
    figure = microscope_figure(shown, depths, near["model"], note=note)
    page = render_microscope(
        shown,
        layer_views(found, painted, train),
        followed,
        agreement=agreement,
        depths=depths,
        model=near["model"],
        filters=[to_png_bytes(one) for one in first_filters(layers)],
        note=note,
        verdict=verdict,
    )
    alt = "validation images as points, alike ones near each other; AUROC of the best channels by layer"
    write_study(out, page, figure, Section("What the layers respond to", verdict, alt))
    kept.forget()
    return table


def read_followed(image: str, images: Path) -> Followed:
    """Read an image by its id, or from a file.

    Raises:
        DataError: it is of the test split, which a study does not read, or there is no such image.
        ImageError: the file is no image that can be read.
    """
    table = read_table(images / "images.parquet").set_index("image_id", drop=False)
    if image in table.index:
        row = table.loc[[image]]
        if row["split"].iloc[0] == "test":
            raise DataError(f"{image}: of the test split, which no study reads; name one of validation")
        pixels = PackedImages(images).decode(places(row)[0])
        return Followed(image, str(row["lesion_id"].iloc[0]), str(row["label"].iloc[0]), pixels)
    path = Path(image)
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"no such image id, and no file that can be read ({error.strerror})"
        raise DataError(f"{image}: {reason}; the ids are in {images / 'images.parquet'}") from error
    return Followed(path.name, "", None, decode(data, name=image, suffix=path.suffix.lower()))


def measure_map(
    scope: Microscope, given: Followed | None, config: MicroscopeConfig, *, draws: int, seed: int
) -> dict[str, Any]:
    """Where validation images lie, and which training lesions are nearest to them.

    Args:
        scope: the network.
        given: the image that is followed; None: the one in the middle of the malignant ones.
        config: how many are mapped and counted.
        draws: of the bootstrap over lesions.
        seed: of the draws and of the map.

    Returns:
        As JSON knows it. `agreement`: as `measure_agreement`. `model`: macro AUROC of the whole network on
        validation, with its interval. `cases`: the images on the map. `followed`: what is said of the image
        that is followed.
    """
    table = read_table(scope.folder / "images.parquet")
    train, val = (table[table["split"] == split].reset_index(drop=True) for split in ("train", "val"))
    packed = PackedImages(scope.folder)
    known, seen = (
        look_at_images(scope.graph, packed, places(rows), description=f"map, {what}")
        for rows, what in ((train, "training"), (val, "validation"))
    )
    said, learned = (
        predictions_of(scope.contract, one.probabilities, rows) for one, rows in ((seen, val), (known, train))
    )
    frozen = scope.trained.trunk.output_shape(scope.contract.input.size)[0]
    spaces = dict(zip(SPACES, (slice(None), slice(None, -frozen), slice(-frozen, None)), strict=True))
    rows = {
        space: nearest(
            seen.embeddings[:, part],
            said.lesions,
            known.embeddings[:, part],
            learned.lesions,
            count=config.neighbors,
        )
        for space, part in spaces.items()
    }
    agreement = measure_agreement(
        {space: learned.labels[found] for space, (found, _) in rows.items()},
        said.labels,
        said.drawn,
        (learned.labels, learned.lesions),
        classes=scope.classes,
        draws=draws,
        rng=np.random.default_rng(seed),
    )
    if given is None:
        given = read_followed(str(val["image_id"][middle_malignant(said)]), scope.folder)
    chosen = balanced_rows(said.labels, config.mapped, seed=seed)
    mates, _ = nearest(
        seen.embeddings[chosen],
        said.lesions[chosen],
        seen.embeddings[chosen],
        said.lesions[chosen],
        count=config.neighbors,
    )
    spots = map_of(seen.embeddings[chosen], seed=seed)
    near = [_near(train, found, cosines) for found, cosines in zip(*rows["whole"], strict=True)]
    cases = [
        {
            "image_id": str(val["image_id"][row]),
            "label": str(val["label"][row]),
            "named": scope.classes[said.named[row]],
            "probability": float(seen.probabilities[row, said.named[row]]),
            "x": float(x),
            "y": float(y),
            "near": near[row],
            "mates": own.tolist(),
        }
        for row, (x, y), own in zip(chosen, spots, mates, strict=True)
    ]
    whole = estimate(_macro_auroc(said, draws=draws, seed=seed))
    return {
        "agreement": agreement.replace({np.nan: None}).to_dict("records"),
        "model": {"auroc": whole.value, "low": whole.low, "high": whole.high},
        "cases": cases,
        "followed": _look_at(scope, given, train, known, config.neighbors),
    }


def middle_malignant(said: Predictions) -> int:
    """Row of the malignant image whose malignant probability is in the middle."""
    scores, positive = said.of(MALIGNANT)
    rows = np.flatnonzero(positive) if positive.any() else np.arange(len(scores))
    return int(rows[np.argsort(scores[rows], kind="stable")[(len(rows) - 1) // 2]])


def _macro_auroc(said: Predictions, *, draws: int, seed: int) -> Sampled:
    metrics = {name: auroc(*said.of(name)) for name in said.classes if said.of(name)[1].any()}
    sampled = resample(metrics, said.drawn, draws=draws, rng=np.random.default_rng(seed))
    return macro(list(sampled.values()))


def _look_at(
    scope: Microscope, given: Followed, train: pd.DataFrame, known: Looked, count: int
) -> dict[str, Any]:
    """What the model says of the image that is followed, and the training lesions nearest to it."""
    output = scope.graph.run(given.pixels)
    lesions = train["lesion_id"].to_numpy(object)
    (rows,), (cosines,) = nearest(
        output.embedding[None], np.array([given.lesion], object), known.embeddings, lesions, count=count
    )
    probabilities = dict(zip(scope.classes, output.probabilities.tolist(), strict=True))
    return {"name": given.name, "probabilities": probabilities, "near": _near(train, rows, cosines)}


def _near(table: pd.DataFrame, rows: NDArray[np.intp], cosines: NDArray[np.float64]) -> list[dict[str, Any]]:
    found = table.iloc[rows]
    return [
        {"image_id": str(name), "label": str(label), "cosine": float(cosine)}
        for name, label, cosine in zip(found["image_id"], found["label"], cosines, strict=True)
    ]


def _map_table(cases: list[Case]) -> pd.DataFrame:
    rows = (vars(case) | {"near": " ".join(near.image_id for near in case.near)} for case in cases)
    return pd.DataFrame(rows).drop(columns="mates")


def _nears(found: list[dict[str, Any]]) -> list[Near]:
    return [Near(**one) for one in found]
