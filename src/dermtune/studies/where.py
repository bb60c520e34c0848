"""Where the network looks: its activation maps against outlines of the lesions, and against blind maps.

Validation images judge; the test split is not read. In dermoscopy the lesion is in the middle, so that a map
which is the same for every image points well: what a network's map is worth is what it adds to that.

Sources: Zhang et al., Top-Down Neural Attention by Excitation Backprop, IJCV 2018 (pointing game, centre
baseline); Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018 (untrained weights).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dermtune.appearance import MASKS, Mask, unpack_mask
from dermtune.backbone import Tail, untrained_backbone
from dermtune.csv_tables import write_tables
from dermtune.errors import DataError
from dermtune.fingerprint import file_sha256
from dermtune.progress import progress
from dermtune.shards import PackedImages, Place, open_array, places
from dermtune.studies import WhereConfig
from dermtune.studies.agreement import measure_agreement, summarize_agreement
from dermtune.studies.attribution import grad_cam, hires_cam, occlusion, units_to_finer_map
from dermtune.studies.images import balanced_rows
from dermtune.studies.kept import Kept
from dermtune.studies.localisation import (
    SIDE,
    THRESHOLDS,
    Judged,
    Looked,
    Measured,
    centred_gaussian,
    compare_groups,
    compare_methods,
    mean_mask,
    measure_methods,
)
from dermtune.studies.model import read_both
from dermtune.studies.overview import Section, write_study
from dermtune.studies.where_page import (
    Shown,
    Tables,
    contact_sheet,
    localisation_figure,
    render_where,
    verdict_on,
)
from dermtune.table import classes_of, read_table, table_sha256
from dermtune.tails import WEIGHTS, TrainedTails
from dermtune_bundle.decode import resize
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract

if TYPE_CHECKING:
    from dermtune.params import Params

_UNTRAINED = 5  # draws of first weights, whose measures are averaged
_CHUNK = 20  # images between two writes of what is kept
_DISAGREEING, _AGREEING = 6, 3


def run_where_study(
    params: "Params", *, images: Path, model: Path, tails: Path, checkpoint: Path, out: Path
) -> pd.DataFrame:
    """Measure where maps of the named class lie, and whether two ways to make them agree; write it.

    Args:
        params: `study.where`, the network of `backbone` and the draws of `evaluate.bootstrap`.
        images: what ingest wrote.
        model: what calibrate wrote.
        tails: what finetune wrote.
        checkpoint: file that keeps the maps, until all is written.
        out: the folder to write: where.csv, groups.csv, overlap.csv, agreement.csv, and as
            `write_study`.

    Returns:
        As `compare_methods`.

    Raises:
        ConfigError: the backbone cannot be loaded, or captum is not installed.
        DataError: images, model or tails are missing, damaged or of each other's making, or no lesion of the
            training or the validation images is outlined.
    """
    config = params.study.where
    trained, graph, contract = read_both(params.backbone, images=images, tails=tails, model=model, threads=0)
    network = Network(graph, contract, trained, params)
    judged, prior = read_outlines(images, config.images, seed=params.seed)
    occluded = balanced_rows(_labels(judged, contract), config.occluded, seed=params.seed)
    made_from = {
        "images": table_sha256(images),
        "model": [file_sha256(model / "model.onnx"), file_sha256(tails / WEIGHTS)],
        "params": [params.backbone.model_dump(), config.model_dump(), params.seed],
    }
    kept = Kept(checkpoint, made_from=made_from)
    packed = PackedImages(images)
    looked = look_at(network, packed, places(judged.table), occluded.tolist(), kept=kept)
    blind = {"mean_mask": prior, "gaussian": centred_gaussian(prior)}
    measured = measure_methods(looked, judged, blind, seed=params.seed)
    is_right = np.array([one.named for one in looked]) == _labels(judged, contract)
    draws, seed = params.evaluate.bootstrap, params.seed
    agreement = measure_agreement(looked, judged, is_right, _names(contract), least=config.agreement)
    tables = Tables(
        compare_methods(measured, judged.groups, draws=draws, seed=seed),
        compare_groups(measured, judged, is_right, draws=draws, seed=seed),
        summarize_agreement(agreement, draws=draws, seed=seed),
        agreement,
    )
    sheets = _sheets(agreement, looked, judged, packed)
    note = _note(judged, is_right, measured, draws)
    _write(tables, measured, sheets, config, note=note, out=out)
    kept.forget()
    return tables.methods


def _write(
    tables: Tables,
    measured: dict[str, Measured],
    sheets: dict[str, Figure],
    config: WhereConfig,
    *,
    note: str,
    out: Path,
) -> None:
    curves = pd.DataFrame({name: one.curve for name, one in measured.items()})
    curves.insert(0, "threshold", THRESHOLDS)
    found = {
        "where": tables.methods,
        "groups": tables.groups,
        "overlap": curves,
        "agreement": tables.agreement.drop(columns="row"),
    }
    write_tables(found, out)
    figure = localisation_figure(tables.methods, note=note)
    verdict = verdict_on(tables.methods, tables.shares)
    page = render_where(
        tables, figure, sheets, note=note, verdict=verdict, window=config.window, least=config.agreement
    )
    alt = "Three measures of where each method's maps lie, beside maps that do not look at the image"
    write_study(out, page, figure, Section("Where the network looks", verdict, alt))


def _names(contract: Contract) -> list[str]:
    return [known.name for known in contract.classes]


def _labels(judged: Judged, contract: Contract) -> NDArray[np.int64]:
    names = _names(contract)
    return np.array([names.index(label) for label in judged.table["label"]], np.int64)


def read_outlines(images: Path, most: int, *, seed: int) -> tuple[Judged, NDArray[np.float64]]:
    """The validation images with an outline, and the mean of the training lesions' masks."""
    table = read_table(images / "images.parquet")
    packed = open_array(images / MASKS, rows=len(table))

    def outlined(split: str) -> tuple[pd.DataFrame, int]:
        own = table[table["split"] == split]
        # an outline of nothing is none
        has = own["has_mask"].to_numpy(bool) & packed[own.index].any(axis=1)
        if not has.any():
            raise DataError(
                f"{images}: no lesion of the {split} images is outlined, and this study judges maps by"
                " outlines; ingest a source that has them, such as ham10000 with its masks, or synthetic"
            )
        return own[has], int((~has).sum())

    def mask(row: int) -> Mask:
        return unpack_mask(packed[row], SIDE, SIDE)

    train, _ = outlined("train")
    val, left_out = outlined("val")
    classes = classes_of(table)
    labels = np.array([classes.index(label) for label in val["label"]], np.int64)
    outlines = len(val)
    val = val.iloc[balanced_rows(labels, most, seed=seed)]
    masks = np.stack([mask(row) for row in val.index])
    judged = Judged(val.reset_index(drop=True), masks, outlined=outlines, left_out=left_out)
    return judged, mean_mask(map(mask, train.index))


class Network:
    """The shipped graph, and the same network in torch, which has gradients."""

    def __init__(self, graph: Graph, contract: Contract, trained: TrainedTails, params: "Params") -> None:
        self._graph, self._contract = graph, contract
        self._trunk, self._tails = trained.trunk, trained.tails
        self._size, self._window = params.backbone.input_size, params.study.where.window
        self._finer = units_to_finer_map(self._trunk, self._tails[0], input_size=self._size)
        self._untrained: list[Tail] = [
            untrained_backbone(params.backbone, seed=params.seed + draw)
            .tail(len(contract.classes), dropout=0.0, seed=params.seed + draw)
            .eval()
            for draw in range(_UNTRAINED)
        ]

    def look(self, image: NDArray[np.uint8]) -> Looked:
        """Maps of the class that the shipped graph names, of an image uint8 (H, W, 3), but for occlusion."""
        output = self._graph.run(image)
        named = int(self._contract.named(output.probabilities[None])[0])
        pixels = torch.from_numpy(resize(image, self._size)).permute(2, 0, 1)[None].float()
        frozen, finer = self._trunk.units, self._finer
        start = min(finer, len(frozen))
        with torch.no_grad():
            shared = frozen[:start]((pixels - self._trunk.mean) / self._trunk.std)
            activations = frozen[start:](shared)

        def last(tail: Tail) -> NDArray[np.float32]:
            with torch.no_grad():
                features = tail.units(activations)
            return grad_cam([], tail, features, named)

        def fine(tail: Tail) -> NDArray[np.float32]:
            rest = [*frozen[start:], *tail.units]
            with torch.no_grad():
                features = torch.nn.Sequential(*rest[: finer - start])(shared)
            return hires_cam(rest[finer - start :], tail, features, named)

        maps = {
            "shown": output.activation_map[named],
            "contrast": output.activation_map[named] - output.activation_map.mean(axis=0),
            "grad_cam": np.mean([last(tail) for tail in self._tails], axis=0),
            "finer": np.mean([fine(tail) for tail in self._tails], axis=0),
        }
        maps |= {f"untrained {draw}": last(tail) for draw, tail in enumerate(self._untrained)}
        return Looked(named, {name: np.asarray(values, np.float64) for name, values in maps.items()})

    def occlude(self, image: NDArray[np.uint8], named: int) -> NDArray[np.float64]:
        """The occlusion map of a class, as the shipped graph answers."""

        def logits(batch: NDArray[np.uint8]) -> NDArray[np.floating]:
            return np.stack([self._graph.run(one).logits for one in batch])

        small = resize(image, self._size)
        return np.asarray(occlusion(logits, small, named, window=self._window), np.float64)


def look_at(
    network: Network, packed: PackedImages, found: Sequence[Place], occluded: Sequence[int], *, kept: Kept
) -> list[Looked]:
    """Maps of N images, and of some of them that of occlusion.

    Args:
        network: makes them.
        packed: where the images lie.
        found: N.
        occluded: rows.
        kept: keeps the maps.
    """

    def chunk(rows: Sequence[int]) -> list[dict[str, Any]]:
        seen = [network.look(packed.decode(found[row])) for row in rows]
        return [
            {"named": one.named, "maps": {name: _plain(values) for name, values in one.maps.items()}}
            for one in seen
        ]

    def cover(row: int) -> list[list[float]]:
        return _plain(network.occlude(packed.decode(found[row]), looked[row].named))

    def chunks() -> Iterator[list[dict[str, Any]]]:
        for start in range(0, len(found), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(found)))
            yield kept.get(f"maps {start}", partial(chunk, rows))

    looked = [
        Looked(one["named"], {name: np.array(values) for name, values in one["maps"].items()})
        for several in progress(chunks(), "where, maps", len(found), step=_CHUNK)
        for one in several
    ]
    for row in progress(occluded, "where, occlusion", len(occluded)):
        looked[row].maps["occlusion"] = np.array(kept.get(f"occlusion {row}", partial(cover, row)))
    return looked


def _plain(values: NDArray[np.float64]) -> list[list[float]]:
    rounded: list[list[float]] = np.round(values, 6).tolist()
    return rounded


def _sheets(
    agreement: pd.DataFrame, looked: Sequence[Looked], judged: Judged, packed: PackedImages
) -> dict[str, Figure]:
    """The images that disagree most, and those that agree most, where there are any."""
    found = places(judged.table)
    apart, alike = agreement[~agreement["agree"]], agreement[agreement["agree"]]
    chosen = {
        "Where they disagree most": apart.head(_DISAGREEING),
        "Where they agree most": alike.tail(_AGREEING)[::-1],
    }

    def show(row: int, one: "pd.Series[Any]") -> Shown:
        title = f"{one['image_id']}: {one['label']}, named {one['named']}\nrank correlation"
        image, maps = packed.decode(found[row]), looked[row].maps
        return Shown(image, judged.masks[row], maps, f"{title} {one['correlation']:.2f}")

    return {
        title: contact_sheet([show(int(one["row"]), one) for _, one in rows.iterrows()])
        for title, rows in chosen.items()
        if len(rows)
    }


def _note(
    judged: Judged,
    is_right: NDArray[np.bool_],
    measured: dict[str, Measured],
    draws: int,
) -> str:
    count, dark = len(judged.table), int(np.isnan(measured["shown"].pointing).sum())
    drawn = f"They are drawn from {judged.outlined:,}, the classes as equally often as they can be."
    notes = {
        f"n = {count:,} validation images of {judged.table['lesion_id'].nunique():,} lesions.": True,
        drawn: count < judged.outlined,
        f"{judged.left_out:,} whose lesion is not outlined are left out.": judged.left_out > 0,
        f"{is_right.mean():.0%} are named rightly.": True,
        f"A lesion covers {judged.masks.mean():.0%} of an image on the mean.": True,
        f"95% intervals: bootstrap over lesions, {draws:,} draws.": True,
        f"{dark:,} maps light nothing and are left out.": dark > 0,
    }
    return " ".join(note for note, is_so in notes.items() if is_so)
