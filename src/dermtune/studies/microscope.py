"""What the layers respond to, and which images lie near each other in the network's eyes.

Channels are chosen by training images; validation images say how well a channel tells a class, and what lies
near what. The test split is not read.

Source: Zeiler and Fergus 2014, Visualizing and understanding convolutional networks, for the patches; Bau et al.
2017, Network dissection, for the question what single channels tell.
"""

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from dermtune.errors import DataError
from dermtune.fingerprint import code_fingerprint
from dermtune.inference import Looked, look_at_images
from dermtune.metrics import Predictions, Sampled, auroc, estimate, macro, predictions_of, resample
from dermtune.progress import progress
from dermtune.shards import PackedImages, places
from dermtune.studies.channels import (
    Layer,
    Responses,
    activations_of,
    as_tensor,
    box_around,
    class_aurocs,
    first_filters,
    layers_of,
    measure_responses,
    receptive_fields,
    strongest,
)
from dermtune.studies.feature_visualization import Palette, visualize
from dermtune.studies.images import Images, balanced_rows, read_images
from dermtune.studies.kept import Kept
from dermtune.studies.microscope_page import (
    Case,
    Channel,
    Given,
    LayerView,
    Map,
    Near,
    Patch,
    framed,
    heat,
    microscope_figure,
    render_microscope,
    stretched,
    to_png_bytes,
    verdict_on,
)
from dermtune.studies.neighbors import map_of, measure_agreement, nearest
from dermtune.studies.overview import Section, write_study
from dermtune.table import read_table, table_sha256
from dermtune.tails import TrainedTails, read_tails
from dermtune_bundle.decode import decode, resize
from dermtune_bundle.errors import BundleError
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import MALIGNANT, Contract
from dermtune_bundle.pictures import thumbnail, to_jpeg

if TYPE_CHECKING:
    from dermtune.params import Params

SPACES: Final = ("whole", "trained", "frozen")
"""The embedding that the bundle compares images by, and its two parts."""
_FIELD_IMAGES = 4
_STANDING_OUT = 3
_PATCH, _THUMB, _GIVEN = 80, 72, 320  # pixels
_MODULES = (
    "dermtune.studies.channels",
    "dermtune.studies.feature_visualization",
    "dermtune.studies.neighbors",
    __name__,
)


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
    scope = open_microscope(params, images=images, tails=tails, model=model)
    given = read_followed(image, images) if image else None
    train, val = (
        read_images(images, split, params.backbone.input_size, most=config.images, seed=params.seed)
        for split in ("train", "val")
    )
    made_from = {
        "images": table_sha256(images),
        "model": scope.contract.to_json(),
        "given": given and [given.name, hashlib.sha256(given.pixels.tobytes()).hexdigest()],
        "code": code_fingerprint(*_MODULES),
        "params": [config.model_dump(), params.backbone.model_dump(), params.seed, params.evaluate.bootstrap],
    }
    kept = Kept(checkpoint, made_from=json.dumps(made_from, sort_keys=True))
    found = kept.get("channels", lambda: measure_channels(scope, train, val, params))
    near = kept.get("neighbors", lambda: measure_map(scope, given, params))
    painted = paint_channels(scope.layers, scope.trained, found["shown"], train, params, kept=kept)

    table, agreement = pd.DataFrame(found["table"]), pd.DataFrame(near["agreement"])
    depths = pd.DataFrame(found["depths"])
    cases = [Case(**one | {"near": [Near(**other) for other in one["near"]]}) for one in near["cases"]]
    followed = _given_view(
        scope,
        given or read_followed(near["followed"]["name"], images),
        near["followed"],
        found["usual"],
        params.backbone.input_size,
    )
    wanted = {one.image_id for case in cases for one in (case, *case.near)}
    wanted |= {one.image_id for one in followed.near}
    shown = Map(cases, scope.contract.classes, _thumbnails(images, wanted))
    tables = {"channels": table, "neighbors": agreement, "map": _map_table(cases)}
    for name, rows in tables.items():
        with atomic_path(out / f"{name}.csv") as temporary:
            rows.to_csv(temporary, index=False, float_format="%.6g")
    note = (
        f"{len(train.labels):,} training images of {_count(train):,} lesions, {len(val.labels):,} of validation of"
        f" {_count(val):,}; the map shows {len(cases):,} of these. 95% intervals by bootstrap over lesions."
    )
    verdict = verdict_on(agreement, depths, near["model"], neighbors=config.neighbors)
    figure = microscope_figure(shown, depths, near["model"], note=note)
    page = render_microscope(
        shown,
        _layer_views(found, painted, train),
        followed,
        agreement=agreement,
        depths=depths,
        model=near["model"],
        filters=[to_png_bytes(one) for one in first_filters(scope.layers)],
        note=note,
        verdict=verdict,
    )
    alt = "validation images as points, alike ones near each other; AUROC of the best channels by layer"
    write_study(out, page, figure, Section("What the layers respond to", verdict, alt))
    kept.forget()
    return table


def open_microscope(params: "Params", *, images: Path, tails: Path, model: Path) -> Microscope:
    """Read the network twice: as torch trained it, layer by layer, and as it is shipped.

    Raises:
        ConfigError: the backbone cannot be loaded.
        DataError: one is missing or damaged, or they are not of one training on these images.
    """
    trained = read_tails(tails, backbone=params.backbone)
    if trained.lineage.get("images_sha256") != table_sha256(images):
        raise DataError(f"{tails}: trained on another image table than that of {images}; re-run finetune")
    try:
        graph = Graph((model / "model.onnx").read_bytes(), name=str(model / "model.onnx"), threads=1)
        contract = Contract.parse((model / "model.json").read_bytes(), source=str(model / "model.json"))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; re-run calibrate") from error
    except BundleError as error:
        raise DataError(f"{error}; re-run calibrate") from error
    if any(contract.lineage.get(key) != value for key, value in trained.lineage.items()):
        raise DataError(f"{model}: not made of the tails of {tails}; re-run calibrate")
    return Microscope(trained, graph, contract, images)


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


def measure_channels(scope: Microscope, train: Images, val: Images, params: "Params") -> dict[str, Any]:
    """The channel of each layer that tells each class best on training, and how well it does on validation.

    Returns:
        As JSON knows it. `table`: a row a layer and class: layer, depth, frozen, field (pixels), label, channel,
        trained (AUROC on training), auroc, low, high (on validation). `depths`: a row a layer: the mean of
        `auroc` over classes, with its interval. `shown`: a layer's channels to show, each with its class and
        the training images (rows, values, places) that excite it most. `usual`: mean and deviation of each
        channel's largest activation. `shapes`: (C, h, w) of each layer's output.
    """
    config, layers, classes = params.study.microscope, scope.layers, len(scope.classes)
    trunk = scope.trained.trunk
    fields = receptive_fields(layers, trunk, train.pixels[:: max(1, len(train.pixels) // _FIELD_IMAGES)][:4])
    on_train = measure_responses(layers, trunk, train.pixels, description="layers, training")
    on_val = measure_responses(layers, trunk, val.pixels, description="layers, validation")
    groups = val.table["group_id"].to_numpy(object)
    table, depths, shown = [], [], []
    for depth, (layer, learned, held) in enumerate(zip(layers, on_train, on_val, strict=True)):
        areas = class_aurocs(learned.values, train.labels, classes)
        best = {
            label: int(areas[:, label].argmax()) for label in range(classes) if not np.isnan(areas[0, label])
        }
        metrics = {
            label: auroc(held.values[:, at].astype(float), val.labels == label) for label, at in best.items()
        }
        rng = np.random.default_rng(params.seed)  # the same draws of lesions for all layers
        sampled = resample(metrics, groups, draws=params.evaluate.bootstrap, rng=rng)
        about = {"layer": layer.name, "depth": depth, "frozen": layer.is_frozen, "field": fields[depth]}
        for label, at in best.items():
            one = estimate(sampled[label])
            judged = {"auroc": one.value, "low": one.low, "high": one.high}
            trained = float(areas[at, label])
            table.append(about | {"label": train.classes[label], "channel": at, "trained": trained} | judged)
        mean = estimate(macro(list(sampled.values())))
        depths.append(about | {"auroc": mean.value, "low": mean.low, "high": mean.high})
        shown.append(_shown_channels(areas, best, learned, train, config.channels, config.patches))
    usual = [
        {"mean": one.values.mean(0).tolist(), "deviation": one.values.std(0).tolist()} for one in on_train
    ]
    shapes = [(one.values.shape[1], *one.shape) for one in on_train]
    return {"table": table, "depths": depths, "shown": shown, "usual": usual, "shapes": shapes}


def _shown_channels(
    areas: NDArray[np.float64],
    best: dict[int, int],
    learned: Responses,
    train: Images,
    count: int,
    patches: int,
) -> list[dict[str, Any]]:
    """Of a layer's best channels those that tell their class best on training, each once."""
    found: dict[int, dict[str, Any]] = {}
    for label in sorted(best, key=lambda label: -areas[best[label], label]):
        at = best[label]
        if at in found or len(found) == count:
            continue
        rows = strongest(learned.values[:, at], train.lesions, patches)
        found[at] = {
            "channel": at,
            "label": train.classes[label],
            "rows": rows.tolist(),
            "values": learned.values[rows, at].tolist(),
            "places": learned.places[rows, at].tolist(),
        }
    return list(found.values())


def measure_map(scope: Microscope, given: Followed | None, params: "Params") -> dict[str, Any]:
    """Where validation images lie, which training lesions are nearest to them, and whether these are of their class.

    Returns:
        As JSON knows it. `agreement`: as `measure_agreement`. `model`: macro AUROC of the whole network on
        validation, with its interval. `cases`: the images on the map. `followed`: what is said of the image
        that is followed.
    """
    config = params.study.microscope
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
    frozen = scope.trained.trunk.output_shape(params.backbone.input_size)[0]
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
        draws=params.evaluate.bootstrap,
        rng=np.random.default_rng(params.seed),
    )
    if given is None:
        given = read_followed(str(val["image_id"][middle_malignant(said)]), scope.folder)
    chosen = balanced_rows(said.labels, config.mapped, seed=params.seed)
    mates, _ = nearest(
        seen.embeddings[chosen],
        said.lesions[chosen],
        seen.embeddings[chosen],
        said.lesions[chosen],
        count=config.neighbors,
    )
    spots = map_of(seen.embeddings[chosen], seed=params.seed)
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
    whole = estimate(_macro_auroc(said, draws=params.evaluate.bootstrap, seed=params.seed))
    return {
        "agreement": agreement.replace({np.nan: None}).to_dict("records"),
        "model": {"auroc": whole.value, "low": whole.low, "high": whole.high},
        "cases": cases,
        "followed": _look_at(scope, given, train, known, config.neighbors),
    }


def middle_malignant(said: Predictions) -> int:
    """Row of the malignant image whose malignant probability is in the middle of theirs; of all, where none is."""
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


def paint_channels(
    layers: list[Layer],
    trained: TrainedTails,
    shown: list[list[dict[str, Any]]],
    train: Images,
    params: "Params",
    *,
    kept: Kept,
) -> list[list[dict[str, Any]]]:
    """Pictures that excite the first of each layer's channels that are shown, but the stem's, whose filters are.

    Returns:
        A list a layer, as JSON knows it: `picture` (PNG in base64) and `value`, its channel's largest activation.
    """
    config = params.study.microscope
    palette = Palette.of(train.pixels)
    found: list[list[dict[str, Any]]] = [[]]
    for depth in progress(range(1, len(layers)), "pictures", len(layers) - 1):
        channels = [one["channel"] for one in shown[depth][: config.painted]]

        def paint(depth: int = depth, channels: list[int] = channels) -> list[dict[str, Any]]:
            pictures, values = visualize(
                layers[: depth + 1],
                trained.trunk,
                channels,
                palette,
                size=config.picture,
                steps=config.steps,
                seed=params.seed + depth,
            )
            return [
                {"picture": base64.b64encode(to_jpeg(picture)).decode(), "value": value}
                for picture, value in zip(pictures, values, strict=True)
            ]

        found.append(kept.get(f"pictures {depth}", paint) if channels else [])
    return found


def _layer_views(
    found: dict[str, Any], painted: list[list[dict[str, Any]]], train: Images
) -> list[LayerView]:
    """What the page shows of each layer."""
    size = train.pixels.shape[1]
    judged = {(row["layer"], row["label"]): row for row in found["table"]}
    views = []
    for about, shown, pictures, (channels, *shape) in zip(
        found["depths"], found["shown"], painted, found["shapes"], strict=True
    ):
        height, width = shape
        own = []
        for number, one in enumerate(shown):
            picture = pictures[number] if number < len(pictures) else None
            patches = [
                _patch(train, row, box_around(place, (height, width), about["field"], size), about["field"])
                for row, place in zip(one["rows"], one["places"], strict=True)
            ]
            told = judged[about["layer"], one["label"]]
            own.append(
                Channel(
                    number=one["channel"],
                    label=one["label"],
                    auroc=(told["auroc"], told["low"], told["high"]),
                    patches=patches,
                    value=one["values"][0],
                    picture=base64.b64decode(picture["picture"]) if picture else None,
                    picture_value=picture["value"] if picture else None,
                )
            )
        views.append(
            LayerView(
                name=about["layer"],
                is_frozen=about["frozen"],
                field=about["field"],
                size=(channels, height, width),
                auroc=(about["auroc"], about["low"], about["high"]),
                channels=own,
            )
        )
    return views


def _patch(train: Images, row: int, corner: tuple[int, int], side: int) -> Patch:
    """The square that excites a channel, and the image around it."""
    top, left = corner
    pixels = train.pixels[row]
    return Patch(
        image_id=str(train.table["image_id"][row]),
        label=train.classes[train.labels[row]],
        patch=to_jpeg(stretched(pixels[top : top + side, left : left + side], _PATCH)),
        whole=to_jpeg(thumbnail(framed(pixels, top, left, side), _PATCH)),
    )


def _given_view(
    scope: Microscope, given: Followed, said: dict[str, Any], usual: list[dict[str, Any]], size: int
) -> Given:
    """The image and what each layer makes of it: the mean of all channels, and those that stand out most."""
    pixels = as_tensor(resize(given.pixels, size)[None])
    rows = []
    with torch.inference_mode():
        found = activations_of(scope.layers, scope.trained.trunk, pixels)
        for layer, maps, known in zip(scope.layers, (one[0].numpy() for one in found), usual, strict=True):
            deviation = np.maximum(known["deviation"], 1e-6)
            apart = (maps.max((1, 2)) - known["mean"]) / deviation
            standing = np.argsort(-apart, kind="stable")[:_STANDING_OUT]
            rows.append(
                (
                    layer.name,
                    heat(np.abs(maps).mean(0)),
                    [(int(at), float(apart[at]), heat(np.maximum(maps[at], 0))) for at in standing],
                )
            )
    return Given(
        name=given.name,
        label=given.label,
        picture=to_jpeg(thumbnail(given.pixels, _GIVEN)),
        probabilities=said["probabilities"],
        near=[Near(**one) for one in said["near"]],
        layers=rows,
    )


def _thumbnails(images: Path, wanted: set[str]) -> dict[str, bytes]:
    """Small pictures of images, by their ids."""
    table = read_table(images / "images.parquet")
    packed, rows = PackedImages(images), table[table["image_id"].isin(wanted)]
    return {
        place.image_id: to_jpeg(thumbnail(packed.decode(place), _THUMB))
        for place in progress(places(rows), "thumbnails", len(rows))
    }


def _map_table(cases: list[Case]) -> pd.DataFrame:
    rows = (vars(case) | {"near": " ".join(near.image_id for near in case.near)} for case in cases)
    return pd.DataFrame(rows).drop(columns="mates")


def _count(images: Images) -> int:
    return len(np.unique(images.lesions.astype(str)))
