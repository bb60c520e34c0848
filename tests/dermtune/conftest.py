"""Every stage, run once for the session on a tiny synthetic set, with small but real choices."""

from pathlib import Path

import pytest

from dermtune.config import read_yaml
from dermtune.params import Params
from dermtune.stages.augment import augment
from dermtune.stages.calibrate import calibrate
from dermtune.stages.embed import embed
from dermtune.stages.finetune import finetune
from dermtune.stages.ingest import ingest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def params() -> Params:
    values = read_yaml(ROOT / "params.yaml")
    values["ingest"]["synthetic_lesions"] = 40
    values["augment"]["views"] = 2
    values["backbone"] |= {"cut": 5, "input_size": 64}
    values["finetune"] |= {"epochs": 2, "head_epochs": 1}
    return Params.model_validate(values)


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def ingested(params: Params, work: Path) -> Path:
    out = work / "ingest"
    ingest(params.ingest, seed=params.seed, out=out)
    return out


@pytest.fixture(scope="session")
def augmented(params: Params, work: Path, ingested: Path) -> Path:
    out = work / "augment"
    size = params.backbone.input_size
    augment(params.augment, input_size=size, seed=params.seed, images=ingested, out=out)
    return out


@pytest.fixture(scope="session")
def embedded(params: Params, work: Path, augmented: Path) -> Path:
    out = work / "embed"
    embed(params.embed, backbone=params.backbone, views=augmented, out=out)
    return out


@pytest.fixture(scope="session")
def finetuned(params: Params, work: Path, ingested: Path, embedded: Path) -> Path:
    out = work / "finetune"
    finetune(
        params.finetune,
        backbone=params.backbone,
        seed=params.seed,
        images=ingested,
        activations=embedded,
        out=out,
        checkpoint=work / "checkpoints" / "finetune.safetensors",
    )
    return out


@pytest.fixture(scope="session")
def calibrated(params: Params, work: Path, ingested: Path, finetuned: Path) -> Path:
    out = work / "calibrate"
    calibrate(params.calibrate, backbone=params.backbone, images=ingested, tails=finetuned, out=out)
    return out


@pytest.fixture(scope="session")
def larger(params: Params, work: Path) -> Path:
    """Enough lesions for folds; embedded with the unvaried training images as well."""
    folder = work / "larger"
    ingest(params.ingest.model_copy(update={"synthetic_lesions": 100}), seed=1, out=folder / "ingest")
    config = params.augment.model_copy(update={"plain": True})
    size = params.backbone.input_size
    augment(config, input_size=size, seed=1, images=folder / "ingest", out=folder / "augment")
    embed(params.embed, backbone=params.backbone, views=folder / "augment", out=folder / "embed")
    return folder
