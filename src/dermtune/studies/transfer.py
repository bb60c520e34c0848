"""What transfer buys: learning curves of one task, learned by networks that know less and more beforehand.

Validation images judge, and choose nothing: each training runs to its end, by a recipe that is set before.
The test split is not read.

Source: Torrey and Shavlik 2010, Transfer learning, fig. 2: a higher start, slope and asymptote.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from dermtune.backbone import Trunk, weights_fingerprint
from dermtune.csv_tables import write_tables
from dermtune.duplicates import turn
from dermtune.network_size import size_of
from dermtune.progress import progress
from dermtune.recipe import FinetuneConfig
from dermtune.studies import TransferConfig
from dermtune.studies.energy import Cost, Meter, joules_per_point
from dermtune.studies.images import Images, read_images, see_turned
from dermtune.studies.kept import Kept
from dermtune.studies.networks import Network, make_networks
from dermtune.studies.overview import Section, write_study
from dermtune.studies.transfer_page import render_transfer, transfer_curves, verdict_on
from dermtune.table import table_sha256
from dermtune.training import SEEDS_APART, Activations, Examples, train_tail
from dermtune.trunk import make_runner, resolve_device

if TYPE_CHECKING:
    from dermtune.params import Params

MEASURES: Final = ("start", "slope", "asymptote")
_SPLITS: Final[tuple[Literal["train", "val"], ...]] = ("train", "val")
_TURNS = 8
_CONFIDENCE = 0.95


def run_transfer_study(params: "Params", *, images: Path, checkpoint: Path, out: Path) -> pd.DataFrame:
    """Train each network on each share of the lesions, from each seed; write what came of it.

    Args:
        params: `study.transfer`, the network of `backbone` and the recipe of `finetune`.
        images: what ingest wrote.
        checkpoint: file that keeps what is measured, until all is.
        out: the folder to write: history.csv, networks.csv, transfer.csv, and as `write_study`.

    Returns:
        As `summarize`.

    Raises:
        ConfigError: the backbone cannot be loaded, or codecarbon is not installed.
        DataError: the images are missing or damaged.
    """
    config = params.study.transfer
    backbone = params.backbone.model_copy(update={"input_size": config.input_size})
    train, val = (
        # of validation, each class has its voice in the mean over classes
        read_images(images, split, config.input_size, most=most, balanced=split == "val", seed=params.seed)
        for split, most in zip(_SPLITS, (config.images, config.images // 2), strict=True)
    )
    networks = make_networks(backbone, classes=len(train.classes), dropout=params.finetune.dropout)
    made_from = {
        "images": table_sha256(images),
        "weights": weights_fingerprint(networks[-1].tail(0)),
        "params": [params.finetune.model_dump(), backbone.model_dump(), config.model_dump(), params.seed],
    }
    kept = Kept(checkpoint, made_from=made_from)
    history = measure_transfer(networks, train, val, config, params.finetune, seed=params.seed, kept=kept)
    curves = summarize(history)
    sizes = _sizes(networks, history, config.input_size)
    note = (
        f"{len(train.labels):,} training images of {train.lesion_count:,} lesions, {len(val.labels):,} images"
        f" of {val.lesion_count:,} for validation, {config.input_size} pixels a side; {config.seeds} seeds."
    )
    figure = transfer_curves(
        history,
        {network.name: network.title for network in networks},
        pretrained=[network.name for network in networks if network.is_pretrained],
        note=note,
    )
    write_tables({"history": history, "networks": sizes, "transfer": curves}, out)
    verdict = verdict_on(curves)
    page = render_transfer(
        sizes, curves, figure, classes=len(np.unique(val.labels)), note=note, verdict=verdict
    )
    alt = "AUROC on validation by epoch and by number of training lesions"
    write_study(out, page, figure, Section("What transfer bought", verdict, alt))
    kept.forget()
    return curves


def measure_transfer(
    networks: Sequence[Network],
    train: Images,
    val: Images,
    config: TransferConfig,
    recipe: FinetuneConfig,
    *,
    seed: int,
    kept: Kept,
) -> pd.DataFrame:
    """Train each network on each share of the lesions, from each seed.

    Args:
        networks: what learns.
        train: images to learn from, each epoch in the next of the eight flips and turns.
        val: images to judge by.
        config: the shares, the seeds and the rates.
        recipe: for all else.
        seed: the first one.
        kept: what was measured before.

    Returns:
        A row an epoch: network, share, seed, lesions, seconds and joules of the training, and what an
        `EpochRecord` tells.
    """
    device = resolve_device(recipe.device, key="finetune.device")
    meter = Meter("DEU")  # or any other: energy alone is told
    learners = (_Learner(network, train, val, meter) for network in networks)
    trainings = (
        (learner, share, number)
        for learner in learners  # one after another: each keeps what its frozen layers see
        for share, number in product(config.shares, range(config.seeds))
    )
    records = []
    for learner, share, number in progress(
        trainings, "transfer", len(networks) * len(config.shares) * config.seeds
    ):
        name = learner.network.name
        own = recipe_for(learner.network, config, recipe, share)
        learn = partial(learner.learn, own, share=share, seed=seed + SEEDS_APART * number, device=device)
        found = kept.get(f"{name} {share} {number}", learn)
        shared = {"network": name, "share": share, "seed": number} | found["training"]
        records += [shared | epoch for epoch in found["epochs"]]
    return pd.DataFrame(records)


@dataclass(frozen=True)
class _Learner:
    """A network and its images."""

    network: Network
    train: Images
    val: Images
    meter: Meter

    def learn(self, recipe: FinetuneConfig, *, share: float, seed: int, device: str) -> dict[str, Any]:
        """Train it on a share of the lesions: what the `training` took, and the `epochs` of its curve."""
        (train, val), looking = self._seen
        rows = share_of_lesions(self.train.lesions, self.train.labels, share, seed=seed)
        own, tail = train.only(torch.from_numpy(rows)), self.network.tail(seed)
        (_, history), learning = self.meter.measure(
            lambda: train_tail(tail, own, val, recipe, seed=seed, device=device, description=None)
        )
        turns = min(recipe.epochs, _TURNS) / _TURNS
        return {
            "training": {
                "lesions": len(np.unique(self.train.lesions[rows])),
                # a short training does not ask for all turns
                "seconds": share * turns * looking.seconds + learning.seconds,
                "joules": share * turns * looking.joules + learning.joules,
            },
            "epochs": [asdict(record) for record in history],
        }

    @cached_property
    def _seen(self) -> tuple[tuple[Examples, Examples], Cost]:
        return self.meter.measure(self._look)

    def _look(self) -> tuple[Examples, Examples]:
        """What the frozen layers see of the images: of those to learn from in all flips and turns."""
        trunk, size = self.network.trunk, self.train.pixels.shape[1]
        run = make_runner(trunk, input_size=size, dtype="float16", device="cpu") if len(trunk.units) else None

        def see(pixels: NDArray[np.uint8], symmetry: int) -> Any:  # noqa: ANN401 (an array, or read like one)
            if run is None:
                return _Normalised(turn(pixels, symmetry), trunk)
            return see_turned(run, pixels, symmetry)

        views = [see(self.train.pixels, symmetry) for symmetry in range(_TURNS)]
        train, val = (torch.from_numpy(images.labels) for images in (self.train, self.val))
        return Examples(views, train), Examples([see(self.val.pixels, 0)], val)


class _Normalised:
    """Pixels as a network wants them, made when they are read: floats take four times the room."""

    def __init__(self, pixels: NDArray[np.uint8], trunk: Trunk) -> None:
        self._pixels = pixels
        self._trunk = trunk
        self.nbytes = 4 * pixels.size

    def __getitem__(self, rows: NDArray[np.int64]) -> Activations:
        chosen = torch.from_numpy(np.ascontiguousarray(self._pixels[rows])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            found: Activations = self._trunk(chosen.float()).numpy()
        return found


def share_of_lesions(
    lesions: NDArray[np.object_], labels: NDArray[np.int64], share: float, *, seed: int
) -> NDArray[np.int64]:
    """Rows of the images of a share of each class's lesions, at least one; more hold fewer.

    Args:
        lesions: (N,) lesion of each image.
        labels: (N,) its class.
        share: of the lesions.
        seed: draws them.
    """
    rng = np.random.default_rng(seed)
    chosen: set[object] = set()
    for label in np.unique(labels):
        own = rng.permutation(np.unique(lesions[labels == label]))
        chosen |= set(own[: max(1, round(share * len(own)))])
    return np.flatnonzero([lesion in chosen for lesion in lesions])


def recipe_for(
    network: Network, config: TransferConfig, recipe: FinetuneConfig, share: float
) -> FinetuneConfig:
    """The recipe of `finetune`, but that nothing stops early, and that fewer lesions are seen more often."""
    epochs = round(config.epochs / share**0.5)
    return recipe.model_copy(
        update={
            "epochs": epochs,
            "patience": epochs,
            "lr": config.lr[network.name],
            "mitigation": "none",  # it is about people, and the question is not
            # what starts from chance has no layers to be careful with
            "head_epochs": recipe.head_epochs if network.is_pretrained else 0,
            "layer_decay": recipe.layer_decay if network.is_pretrained else 1.0,
        }
    )


def summarize(history: pd.DataFrame) -> pd.DataFrame:
    """Start, slope and asymptote of each network's two learning curves, with intervals over seeds.

    By epochs, on all lesions: AUROC after the first epoch; its gain an epoch over the first third of them, by
    least squares; its mean over the last quarter. By lesions, at the end of training: AUROC on the smallest
    share; its gain each time the lesions double, by least squares; AUROC on all.

    Args:
        history: as `measure_transfer` gives it.

    Returns:
        A row a network, curve (`epochs`, `lesions`) and measure: value, and its 95% interval by Student's t.
    """
    rows = []
    for network, own in history.groupby("network", sort=False):
        measured = [_measures(one.sort_values("epoch")) for _, one in own.groupby("seed")]
        for curve, measure in measured[0]:
            values = np.array([found[curve, measure] for found in measured])
            rows.append((network, curve, measure, values.mean(), *_interval(values)))
    return pd.DataFrame(rows, columns=["network", "curve", "measure", "value", "low", "high"])


def _measures(history: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Of one network's trainings from one seed."""
    last = history.groupby("share")["val_auroc"].last().to_numpy()
    shares = np.unique(history["share"])
    by_epoch = history.loc[history["share"] == shares[-1], "val_auroc"].to_numpy()
    third, quarter = max(2, len(by_epoch) // 3), max(1, len(by_epoch) // 4)
    rise, gain = (
        float(np.polyfit(x, y, 1)[0])
        for x, y in ((np.arange(third), by_epoch[:third]), (np.log2(shares), last))
    )
    found = {"epochs": (by_epoch[0], rise, by_epoch[-quarter:].mean()), "lesions": (last[0], gain, last[-1])}
    return {
        (curve, measure): float(value)
        for curve, values in found.items()
        for measure, value in zip(MEASURES, values, strict=True)
    }


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of the mean over seeds, by Student's t."""
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


def _sizes(networks: Sequence[Network], history: pd.DataFrame, input_size: int) -> pd.DataFrame:
    """A row a network: what it is, and what a training on all lesions takes, on the mean over seeds."""
    whole = history[history["share"] == history["share"].max()]
    ends = whole.groupby(["network", "seed"]).agg(
        {"seconds": "first", "joules": "first", "val_auroc": "last"}
    )
    means = ends.groupby("network").mean()
    rows = [
        {"name": network.name, "title": network.title}
        | asdict(size_of(network.trunk, network.tail(0), input_size=input_size))
        | means.loc[network.name, ["seconds", "joules"]].to_dict()
        | {"joules_per_point": joules_per_point(*means.loc[network.name, ["joules", "val_auroc"]])}
        for network in networks
    ]
    return pd.DataFrame(rows)
