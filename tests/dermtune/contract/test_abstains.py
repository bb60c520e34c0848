"""A model trained on real lesions abstains on what is no dermoscopic image, and on few that are."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import numpy as np
import pandas as pd
import pytest
from matplotlib.cbook import get_sample_data
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from dermtune.params import Params
from dermtune.shards import PackedImages, places
from dermtune.stages.augment import augment
from dermtune.stages.calibrate import calibrate
from dermtune.stages.embed import embed
from dermtune.stages.finetune import finetune
from dermtune.stages.ingest import ingest
from dermtune.table import read_table
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract
from dermtune_bundle.quality import measure_quality

REAL = Path(__file__).parents[3].parent / "shared/data/ham10000"
LESIONS = 1000


@pytest.fixture(scope="module")
def folder(params: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on a part of HAM10000's lesions, as it would be on all."""
    out = tmp_path_factory.mktemp("real")
    table = pd.read_csv(REAL / "HAM10000_metadata.csv")
    chosen = table["lesion_id"].drop_duplicates().sample(LESIONS, random_state=1)
    rows = table[table["lesion_id"].isin(chosen)]
    (out / "source/images").mkdir(parents=True)
    rows.to_csv(out / "source/HAM10000_metadata.csv", index=False)
    for name in rows["image_id"]:
        if (image := REAL / "images" / f"{name}.jpg").exists():
            copyfile(image, out / "source/images" / image.name)
    changes = {"source": "ham10000", "path": str(out / "source"), "max_quarantine": 1.0}
    ingest(params.ingest.model_copy(update=changes), seed=1, out=out / "ingest")
    backbone = params.backbone
    views = params.augment.model_copy(update={"views": 1})
    augment(views, input_size=backbone.input_size, seed=1, images=out / "ingest", out=out / "augment")
    embed(params.embed, backbone=backbone, views=out / "augment", out=out / "embed")
    finetune(
        params.finetune.model_copy(update={"epochs": 2}),
        backbone=backbone,
        seed=1,
        images=out / "ingest",
        activations=out / "embed",
        out=out / "finetune",
        checkpoint=out / "checkpoint.safetensors",
    )
    calibrate(
        params.calibrate,
        backbone=backbone,
        images=out / "ingest",
        tails=out / "finetune",
        out=out / "calibrate",
    )
    return out


def photographs() -> Iterator[np.ndarray]:
    """Of a temple, a flower and a person, whole and cropped."""
    rng = np.random.default_rng(0)
    portrait = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    for photo in (*load_sample_images().images, np.asarray(portrait)):
        height, width = photo.shape[:2]
        for _ in range(20):
            side = int(rng.uniform(0.4, 1) * min(height, width))
            y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
            yield photo[y : y + side, x : x + side]


def blurred(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.03 * image.shape[1])))


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data")
def test_what_is_no_dermoscopic_image_or_a_bad_one_is_flagged_and_few_others(folder: Path) -> None:
    graph = Graph.open(folder / "calibrate/model.onnx")
    limits = Contract.parse((folder / "calibrate/model.json").read_bytes(), source="model.json").limits

    def flagged(images: list[np.ndarray]) -> float:
        reasons = [
            limits.reasons(float(graph.run(image).distance), measure_quality(image)) for image in images
        ]
        return float(np.mean([bool(reason) for reason in reasons]))

    packed = PackedImages(folder / "ingest")
    usual = [
        packed.decode(place) for place in places(read_table(folder / "ingest/images.parquet", split="test"))
    ]
    some = usual[::4]
    others = {
        "photographs": [np.ascontiguousarray(photo) for photo in photographs()],
        "blank": [np.full((150, 200, 3), grey, np.uint8) for grey in (0, 60, 128, 200, 255)],
        "blurred": [blurred(image) for image in some],
        "over-exposed": [np.clip(image.astype(int) + 110, 0, 255).astype(np.uint8) for image in some],
        "under-exposed": [(image * 0.3).astype(np.uint8) for image in some],
    }
    found = {name: flagged(images) for name, images in others.items()}
    assert min(found.values()) >= 0.95, found
    tuned_on = len(read_table(folder / "ingest/images.parquet", split="val"))
    by_chance = np.sqrt(0.05 * 0.95 * (1 / len(usual) + 1 / tuned_on))
    assert flagged(usual) <= 0.05 + 2 * by_chance
