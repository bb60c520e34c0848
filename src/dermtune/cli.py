"""The `dermtune` command: one subcommand a stage, and what the clinicians' side needs.

The only module of the package that prints. Heavy imports wait until a command runs.
"""

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from dermtune_bundle.errors import DermtuneError, without_password

if TYPE_CHECKING:
    from dermtune.params import Params
    from dermtune.registry import Registry
    from dermtune_bundle.bundle import Bundle, Prediction
    from dermtune_bundle.errors import ImageError
    from dermtune_bundle.manifest import Manifest
    from dermtune_bundle.predict import FoundFiles

F = TypeVar("F", bound=Callable[..., None])
_URLS = "dermtune.urls"  # in a command's meta: from a path here to the URL that it stands for
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class _Local(click.Path):
    """A file or folder of this machine."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 (click's)
        if "://" in str(value := _plain(value)):
            raise DermtuneError(f"{value}: must be on this machine; fetch it first")
        return super().convert(value, param, ctx)


class _Stored(click.Path):
    """A file or folder of this machine or in a store: a URL stays a string, until `_Command` has it here."""

    def __init__(self, *, is_written: bool = False, is_bundle: bool = False) -> None:
        super().__init__(path_type=Path)
        self.is_written, self.is_bundle = is_written, is_bundle

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 (click's)
        value = _plain(value)
        return value if "://" in str(value) else super().convert(value, param, ctx)


def _plain(value: Any) -> Any:  # noqa: ANN401 (click's)
    """What lies here as a path, though it be written as a URL."""
    return value.removeprefix("file://") if isinstance(value, str) else value


class _Command(click.Command):
    """A command whose function is given paths alone: what is in a store is fetched before, and sent after."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's)
        kinds = {str(param.name): param.type for param in self.params if isinstance(param.type, _Stored)}
        urls = {name: url for name in kinds if isinstance(url := ctx.params.get(name), str)}
        with ExitStack() as stack:
            # what is to be written first: a place that cannot be is told before anything is fetched
            for name in sorted(urls, key=lambda name: not kinds[name].is_written):
                ctx.params[name] = here = stack.enter_context(_here(urls[name], kinds[name]))
                ctx.meta.setdefault(_URLS, {})[str(here)] = urls[name]
            return super().invoke(ctx)


class _Group(click.Group):
    command_class = _Command
    group_class = type


def _here(url: str, kind: _Stored) -> AbstractContextManager[Path]:
    if find_spec("fsspec") is None:
        raise DermtuneError(f"{url}: stores are reached through fsspec: pip install 'dermtune[s3]'")
    from dermtune.transport import fetched, sent
    from dermtune_bundle.container import MAX_BYTES, MAX_FILES

    if kind.is_written:
        return sent(url)
    return fetched(url, max_files=MAX_FILES, max_bytes=MAX_BYTES) if kind.is_bundle else fetched(url)


def _place(path: Path) -> str:
    """What people call a file: where it comes from, or is sent."""
    text = str(path)
    for here, url in click.get_current_context().meta.get(_URLS, {}).items():
        text = text.replace(here, url.rstrip("/"))
    return without_password(text)


Folder = _Local()
Read = _Stored()
Written = _Stored(is_written=True)
BundlePlace = _Stored(is_bundle=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dermtune")
def cli() -> None:
    """From dermoscopic images to a checked, exported model."""


def _in(name: str, what: str) -> Callable[[F], F]:
    return click.option(name, type=Read, required=True, help=what)


_out = click.option("--out", type=Written, required=True, help="Folder to write.")
_key = click.option(
    "--key", type=Folder, help="Public key that must have signed the bundle, else it is refused."
)
_params = click.option("--params", type=Folder, default="params.yaml", show_default=True, help="The choices.")


def _require_training_side() -> None:
    if find_spec("torch") is None:
        raise DermtuneError("this command needs the training side: pip install 'dermtune[train]'")


def _read_params(path: Path, *, network: bool = True) -> "Params":
    """Check the whole of params.yaml before any work starts; from here on the command logs what it does.

    Stages that load the network themselves, or come later, need not check it (`network`): it takes seconds.
    """
    _require_training_side()
    from dermtune.params import read_params

    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    # of torchrun's processes, which would all say the same
    is_first = "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["RANK"] == "0"
    logging.getLogger("dermtune").setLevel(logging.INFO if is_first else logging.WARNING)
    params = read_params(path)
    if network:
        from dermtune.backbone import check_backbone
        from dermtune.trunk import resolve_device

        check_backbone(params.backbone)
        for section in ("embed", "finetune"):
            resolve_device(getattr(params, section).device, key=f"{section}.device")
    return params


@cli.command()
@_params
def check(params: Path) -> None:
    """Check params.yaml: unknown keys, wrong types, impossible values."""
    _read_params(params)
    click.echo(f"{params}: all keys known, all values possible")


@cli.command()
@_params
@click.option("--splits", type=Folder, help="Splits to keep: what keep-splits wrote.")
@click.option("--key", type=Folder, help="Key by which ids of patients are hashed; made where there is none.")
@click.option("--notes", type=Folder, help="What is known of files from the last run; written anew.")
@_out
def ingest(params: Path, splits: Path | None, key: Path | None, notes: Path | None, out: Path) -> None:
    """Stage 1: check, group, split and pack the source's images."""
    choices = _read_params(params)
    from dermtune.stages.ingest import ingest as stage

    stage(
        choices.ingest,
        seed=choices.seed,
        out=out,
        splits=splits,
        key=key,
        notes=notes,
        compute=choices.compute,
    )


@cli.command("fetch")
@click.argument("query")
@click.option("--out", type=Folder, default="data/raw", show_default=True, help="Folder to fetch to.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many images.")
@click.option("--license", "licenses", multiple=True, help="A licence to allow, such as CC-BY; repeatable.")
def fetch_archive(query: str, out: Path, limit: int | None, licenses: tuple[str, ...]) -> None:
    """Fetch images of the ISIC Archive that a search finds, for `ingest.source: isic_archive`.

    What is there already is not fetched again, so that a run that was broken off goes on.

    \b
    Example:
      dermtune fetch 'diagnosis_3:"Melanoma, NOS"' --license CC-0 --license CC-BY
    """  # noqa: D301 (click's mark of lines to be left as they are)
    _require_training_side()
    from dermtune.isic_archive import fetch

    done = fetch(query, out, limit=limit, licenses=licenses)
    click.echo(
        f"{out}: {done.found} found, {done.downloaded} fetched, {done.already_there} there already,"
        f" {done.left_out} left out by licence"
    )


@cli.command("keep-splits")
@click.option("--images", type=Read, default="data/ingest", show_default=True, help="What ingest wrote.")
@click.option("--out", type=Folder, default="data/splits.csv", show_default=True, help="File to add them to.")
def keep_splits(images: Path, out: Path) -> None:
    """Keep each image in its split when images come in or go.

    Run it before the images change: a test lesion then stays one, and models before and after can be
    compared. The flow `retrain` does so by itself.
    """
    _require_training_side()
    from dermtune.splits import keep_splits as keep
    from dermtune.table import read_table

    table = read_table(images / "images.parquet")
    keep(table, out)
    click.echo(f"{out}: {len(table)} images keep their split")


@cli.command()
@_params
@_in("--images", "What ingest wrote.")
@_out
def augment(params: Path, images: Path, out: Path) -> None:
    """Stage 2: make augmented views of the training images."""
    choices = _read_params(params)
    from dermtune.stages.augment import augment as stage

    stage(
        choices.augment,
        input_size=choices.backbone.input_size,
        seed=choices.seed,
        images=images,
        out=out,
        compute=choices.compute,
    )


@cli.command()
@_params
@_in("--views", "What augment wrote.")
@_out
def embed(params: Path, views: Path, out: Path) -> None:
    """Stage 3: run the frozen trunk over every view, once."""
    choices = _read_params(params, network=False)
    from dermtune.stages.embed import embed as stage

    stage(choices.embed, backbone=choices.backbone, views=views, out=out, compute=choices.compute)


@cli.command()
@_params
@_in("--images", "What ingest wrote.")
@_in("--activations", "What embed wrote.")
@click.option(
    "--checkpoint",
    type=Folder,
    required=True,
    help="File that keeps an interrupted training; removed at its end.",
)
@_out
def finetune(params: Path, images: Path, activations: Path, checkpoint: Path, out: Path) -> None:
    """Stage 4: train the tail, or an ensemble of tails."""
    choices = _read_params(params, network=False)
    from dermtune.stages.finetune import finetune as stage

    stage(
        choices.finetune,
        backbone=choices.backbone,
        seed=choices.seed,
        images=images,
        activations=activations,
        out=out,
        checkpoint=checkpoint,
    )


@cli.command()
@_params
@_in("--images", "What ingest wrote.")
@_in("--tails", "What finetune wrote.")
@_out
def calibrate(params: Path, images: Path, tails: Path, out: Path) -> None:
    """Stage 5: calibrate on validation, choose thresholds, write the deployable graph."""
    choices = _read_params(params, network=False)
    from dermtune.stages.calibrate import calibrate as stage

    stage(choices.calibrate, backbone=choices.backbone, images=images, tails=tails, out=out)


@cli.command()
@_params
@click.option("--images", type=Read, help="What ingest wrote.")
@click.option("--model", type=Read, help="What calibrate wrote.")
@click.option(
    "--bundle", type=BundlePlace, help="A finished bundle, to be measured on another source instead."
)
@click.option("--source", help="That source: as ingest.source of params.yaml.")
@click.option("--path", help="Its folder.")
@click.option("--label", "labels", multiple=True, metavar="LABEL=CLASS", help="Its label for a class.")
@_out
def evaluate(params: Path, out: Path, **options: Any) -> None:  # noqa: ANN401 (click's)
    """Stage 6: read the test split, once, through the deployable graph.

    With --bundle, a finished bundle is measured on all images of another source: external validation.

    \b
    Example:
      dermtune evaluate --bundle data/export --source ph2 --path ../shared/data/ph2 --label atypical=nv \\
          --out data/external
    """  # noqa: D301 (click's mark of lines to be left as they are)
    choices = _read_params(params, network=False)
    from dermtune.stages import evaluate as stage

    given = {name for name, value in options.items() if value}
    if given == {"images", "model"}:
        files = {name: options[name] for name in given}
        stage.evaluate(choices.evaluate, seed=choices.seed, **files, out=out)
    elif {"bundle", "source", "path"} <= given and not given & {"images", "model"}:
        pairs = dict(pair.partition("=")[::2] for pair in options["labels"])
        values = choices.ingest.model_dump() | {"source": options["source"], "path": options["path"]}
        source = type(choices.ingest).parse(values | {"label_map": pairs}, source="evaluate")
        stage.evaluate_bundle(
            choices.evaluate, source=source, seed=choices.seed, bundle=options["bundle"], out=out
        )
    else:
        raise click.UsageError("give --images and --model, or --bundle, --source and --path")


@cli.command()
@click.argument("first", type=BundlePlace)
@click.argument("second", type=BundlePlace)
@click.option("--images", type=Read, default="data/ingest", show_default=True, help="What ingest wrote.")
@click.option("--draws", type=click.IntRange(100), default=2000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
def compare(first: Path, second: Path, images: Path, draws: int, seed: int) -> None:
    """Is the SECOND bundle better than the FIRST?

    Both look at the test images of the same ingest, and the difference of each metric gets an interval from a
    paired bootstrap over lesions. To choose a model by the test split is to train on it: compare what is
    finished.

    \b
    Example:
      dermtune compare ../last-month/data/export data/export
    """  # noqa: D301 (as above)
    _require_training_side()
    from dermtune.compare import compare_bundles

    for found in compare_bundles(first, second, images=images, draws=draws, seed=seed):
        click.echo(found.sentence())


@cli.command()
@_params
@_in("--model", "What calibrate wrote.")
@_in("--evaluation", "What evaluate wrote.")
@_out
def export(params: Path, model: Path, evaluation: Path, out: Path) -> None:
    """Stage 7: write the bundle, unless the model misses a gate."""
    choices = _read_params(params, network=False)
    from dermtune.stages.export import export as stage

    stage(choices.export, model=model, evaluation=evaluation, out=out)


@cli.command()
@_params
@click.option("--images", type=Read, default="data/ingest", show_default=True, help="What ingest wrote.")
@click.option("--activations", type=Read, default="data/embed", show_default=True, help="What embed wrote.")
@click.option(
    "--storage",
    type=Folder,
    default="data/checkpoints/search.db",
    show_default=True,
    help="SQLite file that keeps the trials; a search that was interrupted goes on.",
)
@click.option("--out", type=Written, default="data/search", show_default=True, help="Folder to write.")
@click.option(
    "--write-back/--keep-params", default=True, help="Write the best values to params.yaml, or not."
)
def search(
    params: Path, images: Path, activations: Path, storage: Path, out: Path, *, write_back: bool
) -> None:
    """Search for better hyper-parameters of finetune.

    Section `search` of params.yaml says what is tried. Trials read the stored activations, so nothing before
    finetune runs again; the validation split alone decides. The first trial is the recipe in use.

    \b
    Examples:
      dermtune search                     # then `dvc repro` trains the winner on all images
      dvc repro search/dvc.yaml           # the same as a DVC stage; params.yaml stays as it is
    """  # noqa: D301 (click's mark of lines to be left as they are)
    choices = _read_params(params, network=False)
    from dermtune.params import write_params
    from dermtune.stages.search import search as stage

    best = stage(
        choices.search,
        recipe=choices.finetune,
        backbone=choices.backbone,
        seed=choices.seed,
        images=images,
        activations=activations,
        storage=storage,
        out=out,
        compute=choices.compute,
    )
    if write_back:
        write_params(params, "finetune", best)
        click.echo(f"{params}: the best values are written; `dvc repro` trains with them")


def _made_by(name: str, stage: str) -> Callable[[F], F]:
    return click.option(
        name, type=Read, default=f"data/{stage}", show_default=True, help=f"What {stage} wrote."
    )


def _kept(study: str) -> Callable[[F], F]:
    return click.option(
        "--checkpoint",
        type=Folder,
        default=f"data/checkpoints/{study}.json",
        show_default=True,
        help="File that keeps what is measured, so that a study that was broken off goes on.",
    )


def _study_out(study: str) -> Callable[[F], F]:
    default = f"data/study/{study}"
    return click.option("--out", type=Written, default=default, show_default=True, help="Folder to write.")


@cli.group()
def study() -> None:
    """Studies beside the pipeline: they cost trainings, and change nothing."""


@study.command()
@_params
@click.option("--images", type=Read, default="data/ingest", show_default=True, help="What ingest wrote.")
@click.option("--activations", type=Read, default="data/embed", show_default=True, help="What embed wrote.")
@click.option("--share", "shares", type=click.FloatRange(0, 1), multiple=True, default=(0.25, 0.5, 1.0))
@click.option("--out", type=Written, default="data/study", show_default=True, help="Folder to write.")
def leakage(params: Path, images: Path, activations: Path, shares: tuple[float, ...], out: Path) -> None:
    """What would a leak have bought? Trains with shares of the test lesions among the training images.

    All else is the same, so that what the metrics gain is what the leak pretends. The models are thrown away.
    """
    choices = _read_params(params, network=False)
    from dermtune.studies.leakage import run_leakage_study

    for share, found in run_leakage_study(
        choices, images=images, activations=activations, shares=shares, out=out
    ).items():
        click.echo(f"{share:.0%} of the test lesions leaked (first: none, second: these):")
        for difference in found:
            click.echo(f"  {difference.sentence()}")


@study.command()
@_params
@_made_by("--images", "ingest")
@_kept("transfer")
@_study_out("transfer")
def transfer(params: Path, images: Path, checkpoint: Path, out: Path) -> None:
    """What does transfer buy? Eight networks learn the same task, from fewer and from more lesions.

    From a linear model on pixels, by networks that start from random weights, to the pretrained network with
    more and more of it trained. Writes tables, a figure and a page, transfer.html.
    """
    choices = _read_params(params, network=False)
    from dermtune.studies.transfer import run_transfer_study

    curves = run_transfer_study(choices, images=images, checkpoint=checkpoint, out=out)
    for row in curves[(curves["curve"] == "lesions") & (curves["measure"] == "asymptote")].itertuples():
        click.echo(f"{row.network:16} AUROC {row.value:.3f} [{row.low:.3f}, {row.high:.3f}] on all lesions")
    click.echo(_place(out / "transfer.html"))


@study.command()
@_params
@_made_by("--images", "ingest")
@_made_by("--tails", "finetune")
@_kept("robustness")
@_study_out("robustness")
def robustness(params: Path, images: Path, tails: Path, checkpoint: Path, out: Path) -> None:
    """What is lost when a picture is bad, or the camera moves? And what does augmentation buy?

    Validation images are spoiled in thirteen ways at five severities (hair, ink, blur, JPEG, another
    dermatoscope, …) and moved by pixels, degrees and per cent. Asked are the trained tails, a tail trained
    without augmentation, and a linear probe. Writes tables, a figure and a page, robustness.html.
    """
    choices = _read_params(params, network=False)
    from dermtune.studies.robustness import run_robustness_study

    tables = run_robustness_study(choices, images=images, tails=tails, checkpoint=checkpoint, out=out)
    for row in tables["errors"].itertuples():
        click.echo(f"{row.artefact!s:20} corruption error {row.value:.2f} [{row.low:.2f}, {row.high:.2f}]")
    click.echo(_place(out / "robustness.html"))


@study.command()
@_params
@_made_by("--images", "ingest")
@_made_by("--tails", "finetune")
@_made_by("--model", "calibrate")
@_kept("attacks")
@_study_out("attacks")
def attacks(params: Path, images: Path, tails: Path, model: Path, checkpoint: Path, out: Path) -> None:
    """How small a change makes the model err? Attacks model.onnx with images changed as little as it takes.

    Attacks that know the network, one that only asks it, and a patch; then checks that the attacks are no
    blunt ones, and what training against them buys and costs (study.attacks.hardening). Writes tables,
    pictures of changed validation images, a figure and a page, attacks.html.
    """
    choices = _read_params(params, network=False)
    from dermtune.studies.attacks import run_attacks_study

    curves = run_attacks_study(
        choices, images=images, tails=tails, model=model, checkpoint=checkpoint, out=out
    )
    strongest = curves[(curves["attack"] == "strongest") & (curves["norm"] == "linf")]
    for row in strongest.itertuples():
        click.echo(f"{row.decision:16} {row.eps:3g}/255: {row.value:.0%} of {row.images} stay right")
    click.echo(_place(out / "attacks.html"))


@study.command()
@_params
@_made_by("--images", "ingest")
@_kept("bias")
@_study_out("bias")
def bias(params: Path, images: Path, checkpoint: Path, out: Path) -> None:
    """Whom does the network serve worse, and do reweighting, balanced sampling or group DRO change it?

    Trains without and with each mitigation for each of `study.bias.attributes`, judges lesions that were not
    learned from, group by group, and compares. Writes tables, a figure and a page, bias.html. What helps can
    be used: `finetune.mitigation` and `finetune.groups`.
    """
    choices = _read_params(params, network=False)
    from dermtune.studies.bias import run_bias_study

    found = run_bias_study(choices, images=images, checkpoint=checkpoint, out=out)
    for row in found[(found["group"] == "worst") & (found["metric"] == "auroc")].to_dict("records"):
        of = f"{row['attribute']} {row['mitigation']}"
        span = f"[{row['low']:.3f}, {row['high']:.3f}]"
        click.echo(f"{of:28} AUROC {row['value']:.3f} {span} in the worst group, {row['which']}")
    click.echo(_place(out / "bias.html"))


@study.command()
@_params
@_made_by("--images", "ingest")
@_made_by("--tails", "finetune")
@_made_by("--model", "calibrate")
@click.option(
    "--image", help="To follow through the layers: an id of a training or validation image, or a file."
)
@_kept("microscope")
@_study_out("microscope")
def microscope(
    params: Path, images: Path, tails: Path, model: Path, image: str | None, checkpoint: Path, out: Path
) -> None:
    """What do the layers respond to, and which images lie near each other?

    Writes one page, microscope.html, and the tables behind it: a map of the validation images to click on,
    with each one's nearest neighbours; the first filters; of each layer the channels that tell a class best,
    the parts of training images that excite them most, and pictures made to excite them; and one image on its
    way through the layers. The page holds pictures of patients: keep it as you keep the images.

    \b
    Example:
      dermtune study microscope --image lesion.jpg
    """  # noqa: D301 (as above)
    choices = _read_params(params, network=False)
    from dermtune.studies.microscope import run_microscope_study

    found = run_microscope_study(
        choices, images=images, tails=tails, model=model, image=image, checkpoint=checkpoint, out=out
    )
    for layer, rows in found.groupby("layer", sort=False):
        click.echo(
            f"{layer:8} best single channels: AUROC {rows['auroc'].astype(float).mean():.3f} on validation"
        )
    click.echo(_place(out / "microscope.html"))


@study.command()
@_params
@_made_by("--images", "ingest")
@_made_by("--model", "calibrate")
@_made_by("--tails", "finetune")
@_kept("where")
@_study_out("where")
def where(params: Path, images: Path, model: Path, tails: Path, checkpoint: Path, out: Path) -> None:
    """Where does the network look? Its maps against outlines of the lesions, and against blind maps.

    The map that clinicians see, Grad-CAM and occlusion are held against the lesion's outline: is the maximum
    in it, how far do both overlap, how much of the map lies in it? So are maps that are the same for every
    image, since in dermoscopy the lesion is in the middle. The source must have outlines, as HAM10000 and the
    synthetic one do. Writes tables, a figure and a page, where.html.

    \b
    Examples:
      dermtune study where
      dermtune study where --out /tmp/where      # section study.where of params.yaml says of how many images
    """  # noqa: D301 (click's mark of lines to be left as they are)
    choices = _read_params(params, network=False)
    from dermtune.studies.where import run_where_study

    methods = run_where_study(
        choices, images=images, model=model, tails=tails, checkpoint=checkpoint, out=out
    )
    for _, row in methods[methods["measure"] == "pointing"].iterrows():
        interval = f"[{row['low']:.3f}, {row['high']:.3f}] of {row['images']} images"
        click.echo(f"{row['method']:10} maximum in the lesion {row['value']:.3f} {interval}")
    click.echo(_place(out / "where.html"))


@study.command()
@_params
@click.option(
    "--splits",
    type=Folder,
    default="data/splits.csv",
    show_default=True,
    help="File of kept splits, as ingest takes it.",
)
@click.option(
    "--key",
    type=Folder,
    default="data/patients.key",
    show_default=True,
    help="File of the key, as ingest takes it.",
)
@click.option(
    "--checkpoint",
    type=Folder,
    default="data/checkpoints/cost",
    show_default=True,
    help="Folder in which the stages run, removed at the end; a study that was broken off goes on there.",
)
@_study_out("cost")
def cost(params: Path, splits: Path, key: Path, checkpoint: Path, out: Path) -> None:
    """What does the model cost? Runs each stage once more, under a meter.

    Time, energy and CO2 of each, multiply-adds and parameters frozen and trained. Takes as long as the whole
    pipeline; the stages' own outputs stay as they are. The model card tells it from the next export on:

    \b
      dermtune study cost
      dvc repro --single-item --force export
    """  # noqa: D301 (click's mark of lines to be left as they are)
    choices = _read_params(params)
    from dermtune.studies.cost import run_cost_study

    costs = run_cost_study(choices, splits=splits, key=key, checkpoint=checkpoint, out=out)
    for row in costs.assign(hours=costs["joules"] / 3600).itertuples():
        click.echo(f"{row.stage:10} {row.seconds:8.1f} s {row.hours:8.3f} Wh {row.grams:8.3f} g CO2e")
    click.echo(_place(out / "cost.html"))


@cli.command()
@click.option("--data", type=Folder, default="data", show_default=True, help="Where the stages wrote.")
def summary(data: Path) -> None:
    """Show the last run's headline metrics, and where its bundle, report and plots are."""
    _require_training_side()
    from rich.console import Console
    from rich.table import Table

    from dermtune.report import headline

    metrics = data / "evaluate" / "metrics.json"
    if not metrics.is_file():
        raise DermtuneError(f"{metrics}: no run to show yet; run `make run` or `dvc repro` first")
    try:
        rows = headline(json.loads(metrics.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise DermtuneError(f"{metrics}: not the metrics that evaluate writes; re-run evaluate") from error
    table = Table("metric, on held-out lesions", "value [95% interval]")
    for label, value in rows:
        table.add_row(label, value)
    console = Console(soft_wrap=True)
    console.print(table)
    for what, place in (("bundle", "export"), ("report", "evaluate/report.html"), ("plots", "evaluate")):
        console.print(f"{what}: {data / place}", highlight=False)


@cli.command()
@click.argument("bundle", type=BundlePlace)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=Folder)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "jsonl", "csv", "parquet"]),
    default="table",
    show_default=True,
)
@click.option(
    "--output", "-o", type=Folder, help="Write to this file instead of the terminal, whole or not at all."
)
@click.option("--overlays", type=Folder, help="Write a picture of where the model looked here, one an image.")
@click.option("--dicom", "dicoms", type=Folder, help="Write a DICOM answer here, one a DICOM file.")
@_key
def predict(
    bundle: Path,
    paths: tuple[Path, ...],
    kind: str,
    output: Path | None,
    overlays: Path | None,
    dicoms: Path | None,
    key: Path | None,
) -> None:
    """Classify images with a bundle that `dermtune export` wrote.

    BUNDLE is the bundle's folder or .zip; it is verified first. Each PATH is an image (JPEG, PNG, BMP, TIFF,
    WebP, DICOM; HEIC with the extra [heic]), a folder, searched through and through, or a .csv list with a
    column `path`. An image that cannot be read is named on standard error, the others go on, and the exit
    code is 2. A DICOM answer is a Secondary Capture in the patient's study: the picture, lit where the model
    looked, and below it what the model says.

    \b
    Examples:
      dermtune predict data/export lesion.jpg
      dermtune predict data/export images/ --format jsonl --output answers.jsonl
      dermtune predict bundle.zip list.csv --key clinic.pub --overlays looked/

    Each line of jsonl has path, predicted, malignant_probability, probabilities (class to calibrated
    probability), decisions (operating point to true or false), prediction_set (the classes that cannot be
    ruled out), abstain (why the answer is not to be relied on; empty: nothing speaks against it), distance
    (how unlike the images that the model knows), error (why there is no answer), bundle and notice; csv and
    parquet have the same columns.

    Research use only: not for diagnosis.
    """  # noqa: D301 (click's mark of lines to be left as they are)
    from dermtune_bundle.bundle import Bundle
    from dermtune_bundle.errors import ImageError
    from dermtune_bundle.predict import predict_files

    opened = Bundle.open(bundle, key=key)
    opened.check_golden()
    found = _find_images(paths)
    if kind == "parquet" and output is None:
        raise click.UsageError("--format parquet needs --output")
    _require_places(bundle, output, overlays, dicoms)
    failed = 0

    def answers(images: Iterable[Path]) -> Iterator[dict[str, Any]]:
        nonlocal failed
        for path, outcome in predict_files(opened, images, overlays=overlays, dicoms=dicoms):
            if isinstance(outcome, ImageError):
                failed += 1
                _complain(outcome)
            yield from _row(opened, path, outcome, overlays)

    _write_answers(answers, found.images, opened.manifest, kind, output)
    if failed:
        click.echo(f"{failed} of {len(found.images)} images failed; see above", err=True)
    if failed or found.refused:
        sys.exit(2)


def _require_places(bundle: Path, output: Path | None, *folders: Path | None) -> None:
    """Hold where answers are to go against what must stay as it is."""
    from dermtune_bundle.container import require_outside

    if output and output.exists() and not output.is_file():
        raise DermtuneError(f"{output}: no regular file, which would be replaced; write to a new name")
    for place in (output, *folders):
        if place:
            require_outside(bundle, place)


def _row(
    bundle: "Bundle", path: Path, outcome: "Prediction | ImageError", overlays: Path | None
) -> Iterator[dict[str, Any]]:
    """What is written of an image: one row, though it failed; none for a DICOM answer that failed."""
    from dermtune_bundle.dicom_answer import NoDicomAnswerError
    from dermtune_bundle.errors import ImageError
    from dermtune_bundle.predict import failure, picture_path, record

    if isinstance(outcome, NoDicomAnswerError):
        return
    if isinstance(outcome, ImageError):
        row, picture = failure(str(path), bundle, str(outcome)), None
    else:
        row = record(str(path), bundle, outcome)
        picture = overlays and str(picture_path(overlays, path, ".png"))
    yield row | ({"overlay": picture} if overlays else {})


@cli.command()
@click.argument("bundle", type=BundlePlace)
@_key
def verify(bundle: Path, key: Path | None) -> None:
    """Check that a bundle is whole, unchanged and by whom you think, and that it computes here as there.

    Every file is held against SHA256SUMS (none missing, added, changed or a link), the signature against
    --key, bundle.json is read strictly, and the graph runs the golden cases in the bundle: this machine must
    give the same probabilities within 0.0001. Anything amiss is named, with exit code 2. The version printed
    is the SHA-256 of SHA256SUMS: without a key, compare it with the one that the sender tells you.

    \b
    Examples:
      dermtune verify bundle.zip --key clinic.pub
      dermtune verify data/export
    """  # noqa: D301 (as above)
    from dermtune_bundle.bundle import Bundle

    opened = Bundle.open(bundle, key=key)
    difference = opened.check_golden()
    click.echo(f"ok: {opened.manifest.name}, {len(opened.manifest.classes)} classes")
    click.echo(f"version: {opened.version}")
    if key is not None:
        click.echo(f"signed by: {opened.signed_by}, the key of {key}")
    elif opened.claimed_key is not None:
        click.echo(
            f"signed by: NOT CHECKED: give the key, which says that it is {opened.claimed_key}, with --key"
        )
    else:
        click.echo("signed by: nobody")
    if opened.manifest.golden:
        said = f"{len(opened.manifest.golden)}, probabilities differ by {difference:.1g} at most"
    else:
        said = "none: nothing proves that this machine computes as the one that made the bundle"
    click.echo(f"golden cases: {said}")
    click.echo(opened.manifest.notice)


@cli.command()
@click.argument("bundle", type=BundlePlace)
@click.argument("out", type=Written)
@click.option("--key", type=Folder, help="Private key (STEM.key of `dermtune keygen`) to sign with.")
def pack(bundle: Path, out: Path, key: Path | None) -> None:
    """Write a checked copy of BUNDLE to OUT, one file if OUT ends in .zip, and sign it.

    \b
    Example:
      dermtune pack data/export dermtune-2026-11.zip --key clinic.key
    """  # noqa: D301 (as above)
    from dermtune_bundle.bundle import Bundle, pack_bundle

    pack_bundle(bundle, out, key=key)
    opened = Bundle.open(out)
    click.echo(f"{_place(out)}: version {opened.version}")
    click.echo(f"signed by: {opened.claimed_key or 'nobody'}{'' if key else ', not checked'}")


@cli.command()
@click.argument("stem", type=Folder)
def keygen(stem: Path) -> None:
    """Make a pair of Ed25519 keys: STEM.key signs bundles, STEM.pub checks them.

    Keep STEM.key where only those who release models can read it. Give STEM.pub to those who use them, by
    another way than the bundle: who can swap the one must not be able to swap the other.

    \b
    Example:
      dermtune keygen clinic
    """  # noqa: D301 (as above)
    from dermtune_bundle.signature import make_keys

    key_id = make_keys(stem)
    click.echo(f"{stem}.key: keep it secret")
    click.echo(f"{stem}.pub: give it away; it is key {key_id}")


@cli.command()
def schema() -> None:
    """Print the JSON Schema of a bundle's bundle.json."""
    from dermtune_bundle.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@cli.command()
@click.argument("bundle", type=BundlePlace)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address; 0.0.0.0 to be reached from elsewhere."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--token-file", type=Folder, help="File with a token that each client must bear.")
@click.option("--max-mib", type=click.IntRange(1), default=64, show_default=True, help="Of one request.")
@click.option("--max-files", type=click.IntRange(1), default=16, show_default=True, help="Of one request.")
@click.option("--max-megapixels", type=click.IntRange(1), default=64, show_default=True, help="Of one image.")
@click.option(
    "--per-minute", type=click.IntRange(1), default=600, show_default=True, help="Requests a client."
)
@_key
def serve(
    bundle: Path,
    host: str,
    port: int,
    token_file: Path | None,
    max_mib: int,
    max_files: int,
    max_megapixels: int,
    per_minute: int,
    key: Path | None,
) -> None:
    """Serve BUNDLE over HTTP, with a page at / to drop images on.

    The bundle is verified first, as by `dermtune verify`. No image is kept or logged. Where others can reach
    it, give a token, and put a proxy with TLS and time-outs before it.

    \b
    Example:
      dermtune serve bundle.zip --key clinic.pub          # then open http://127.0.0.1:8000
      curl -F file=@lesion.jpg http://127.0.0.1:8000/v1/predict
    """  # noqa: D301 (as above)
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise DermtuneError("this command needs the web side: pip install 'dermtune[serve]'")
    from dermtune_bundle.bundle import Bundle
    from dermtune_server.app import create_app
    from dermtune_server.app import serve as run
    from dermtune_server.guard import Limits

    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("dermtune").setLevel(logging.INFO)
    opened = Bundle.open(bundle, key=key, threads=1)
    opened.check_golden()
    try:
        token = token_file.read_text(encoding="utf-8").strip() if token_file else ""
    except (OSError, ValueError) as error:
        raise DermtuneError(f"{token_file}: cannot be read as a text") from error
    if token_file and not token:
        raise DermtuneError(f"{token_file}: holds no token")
    if not token and host not in {"127.0.0.1", "localhost", "::1"}:
        click.echo(f"warning: whoever reaches {host}:{port} can ask; give --token-file", err=True)
    limits = Limits(max_mib << 20, max_files, max_megapixels * 10**6, per_minute)
    run(create_app(opened, token=token, limits=limits, workers=os.cpu_count() or 1), host=host, port=port)


@cli.group()
@click.option(
    "--registry",
    envvar="DERMTUNE_REGISTRY",
    default="registry",
    show_default=True,
    help="Folder, or s3://, gs:// or abfs:// place; DERMTUNE_REGISTRY names it as well.",
)
@click.pass_context
def registry(context: click.Context, registry: str) -> None:
    """Bundles that were released: every version stays, one is the champion.

    \b
    Examples:
      dermtune registry promote data/export --reason "first release"
      dermtune registry --registry s3://clinic/models list
    """  # noqa: D301 (as above)
    _require_training_side()
    from dermtune.registry import Registry

    context.obj = Registry(registry)


@registry.command("list")
@click.pass_obj
def list_versions(registry: "Registry") -> None:
    """List every promotion, the champion last, and the versions that were never promoted."""
    history = registry.history()
    for one in history:
        mark = "champion" if one is history[-1] else "        "
        click.echo(f"{one.number:4}  {one.at}  {one.version[:12]}  {mark}  {one.reason}")
    for version in sorted(set(registry.versions()) - {one.version for one in history}):
        click.echo(f"   -  never promoted             {version[:12]}")


@registry.command()
@click.argument("version", default="champion")
@click.pass_obj
def show(registry: "Registry", version: str) -> None:
    """Show what a VERSION (its first digits will do; by default the champion) knows and how good it was."""
    from dermtune.model_card import describe_metric, each_metric
    from dermtune_bundle.bundle import Bundle

    version = registry.find(version)
    with TemporaryDirectory() as folder:
        opened = Bundle.open(registry.fetch(version, Path(folder, "bundle.zip")))
    click.echo(f"{opened.manifest.name}, version {version}, signed by {opened.signed_by or 'nobody'}")
    click.echo(f"classes: {', '.join(known.name for known in opened.manifest.classes)}")
    for name, metric in each_metric(opened.manifest.metrics):
        if name in {"auroc.macro", "auroc.malignant", "balanced_accuracy"}:
            click.echo(f"{name}: {describe_metric(metric)}")
    for one in registry.history():
        if one.version == version:
            click.echo(f"promoted {one.at}: {one.reason}")


@registry.command()
@click.argument("bundle", type=BundlePlace)
@click.option("--reason", required=True, help="Why, for the history.")
@click.option(
    "--images",
    type=Read,
    help="What ingest wrote when BUNDLE was made: keep beside it what the monitor flow compares with.",
)
@click.pass_obj
def promote(registry: "Registry", bundle: Path, reason: str, images: Path | None) -> None:
    """Make BUNDLE, a folder, a .zip or a version that is kept, the champion."""
    from dermtune.promotion import kept_beside

    over = registry.champion()
    with TemporaryDirectory() as folder:
        path = bundle
        if not path.exists():
            path = registry.fetch(registry.find(str(bundle)), Path(folder, "bundle.zip"))
        version = registry.add(path, beside=kept_beside(path, images) if images else None)
    if version == over:
        click.echo(f"champion: {version}, as before")
        return
    done = registry.promote(version, over=over, reason=reason)
    click.echo(f"champion: {done.version} (promotion {done.number})")


@registry.command()
@click.option("--reason", required=True, help="Why, for the history.")
@click.pass_obj
def rollback(registry: "Registry", reason: str) -> None:
    """Make the champion before this one champion again."""
    done = registry.rollback(reason=reason)
    click.echo(f"champion: {done.version} (promotion {done.number})")


@registry.command()
@click.argument("out", type=Written)
@click.option("--version", default="champion", show_default=True, help="Or the first digits of another.")
@click.pass_obj
def fetch(registry: "Registry", out: Path, version: str) -> None:
    """Copy a bundle to OUT, a .zip, and check it."""
    found = registry.find(version)
    click.echo(f"{_place(registry.fetch(found, out))}: version {found}")


def _find_images(paths: Sequence[Path]) -> "FoundFiles":
    """Find the images, and say what else there is."""
    from dermtune_bundle.errors import ImageError
    from dermtune_bundle.predict import find_images

    found = find_images(paths)
    if found.skipped:
        click.echo(_shown(f"skipped, not image files: {_first_five(found.skipped)}"), err=True)
    for error in found.refused:
        _complain(error)
    if not found.images and not found.refused:
        raise ImageError(f"{_first_five(paths)}: no image files")
    return found


def _complain(error: Exception) -> None:
    click.echo(_shown(f"error: {error}"), err=True)


def _shown(text: str) -> str:
    """A file's name may hold what would move the cursor or begin a line of its own."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _first_five(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""  # noqa: PLR2004 (the first five)
    return ", ".join(str(path) for path in paths[:5]) + more


def _with_progress(images: list[Path]) -> Iterable[Path]:
    from dermtune.progress import progress

    return progress(images, "predict", len(images)) if sys.stderr.isatty() else images


def _write_answers(
    answers: Callable[[Iterable[Path]], Iterator[dict[str, Any]]],
    images: list[Path],
    manifest: "Manifest",
    kind: str,
    output: Path | None,
) -> None:
    """Write what is said of each image as soon as it is known."""
    from dermtune_bundle.files import atomic_path
    from dermtune_bundle.predict import write_csv, write_jsonl, write_parquet

    try:
        if kind == "parquet" and output is not None:
            with atomic_path(output) as temporary:
                write_parquet(answers(_with_progress(images)), temporary)
            return
        with _open_output(output) as file:
            if kind == "table":
                _write_table(answers(_with_progress(images)), manifest, file)
            else:
                write = write_jsonl if kind == "jsonl" else write_csv
                # a bar and lines on one terminal would tear each other apart
                write(answers(images if file.isatty() else _with_progress(images)), file)
    except OSError as error:
        place = error.filename or output or "standard output"
        raise DermtuneError(f"{place}: cannot be written: {error.strerror}") from error


@contextmanager
def _open_output(path: Path | None) -> Iterator[IO[str]]:
    """The file, or standard output itself: a progress bar replaces sys.stdout while it runs."""
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        yield sys.stdout
        return
    from dermtune_bundle.files import atomic_path

    try:
        # a file's name may hold bytes that are no text
        with (
            atomic_path(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            yield file
    except OSError as error:
        raise DermtuneError(f"{path}: cannot be written: {error.strerror}") from error


def _write_table(records: Iterable[dict[str, Any]], manifest: "Manifest", file: IO[str]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    titles = {known.name: known.title for known in manifest.classes}
    table = Table(title=escape(manifest.name), caption=escape(manifest.notice))
    table.add_column("image", overflow="fold")
    table.add_column("named")
    table.add_column("but")
    for name in ("probability", "malignant", *(point.name for point in manifest.operating_points)):
        table.add_column(name, justify="right")
    for row in records:
        if row["error"]:
            continue  # named already
        numbers = (row["probabilities"][row["predicted"]], row["malignant_probability"])
        decisions = ("yes" if decision else "no" for decision in row["decisions"].values())
        table.add_row(
            escape(row["path"]),
            escape(titles[row["predicted"]]),
            "; ".join(row["abstain"]),
            *(f"{number:.3f}" for number in numbers),
            *decisions,
        )
    Console(file=file).print(table)


def main() -> None:
    """Run the command line; an error that a person can mend is one line and exit code 2."""
    try:
        cli(standalone_mode=True)
    except DermtuneError as error:
        _complain(error)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        _complain(DermtuneError("the GPU has no room; lower batch_size, or set device to cpu"))
        sys.exit(2)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _complain(
            DermtuneError(f"{error.filename or 'the disk'}: {error.strerror}; make room and run it again")
        )
        sys.exit(2)
