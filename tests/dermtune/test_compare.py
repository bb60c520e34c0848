from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermtune.compare import Difference, compare, compare_bundles
from dermtune.duplicates import SIDE
from dermtune.errors import DataError
from dermtune.leakage import PRINTS
from dermtune.metrics import Predictions
from dermtune.shards import ImagePacker
from dermtune.table import COLUMNS, table_sha256, write_table
from dermtune_bundle.bundle import write_bundle
from dermtune_bundle.manifest import Manifest, OperatingPoint

POINT = OperatingPoint("rule-out", "malignant", 0.4, "a goal", None, None)


def make(noise: float, *, images: int = 600, seed: int = 1) -> Predictions:
    """The more noise, the worse; the lesions are the same."""
    labels = np.random.default_rng(0).choice(3, size=images, p=[0.3, 0.5, 0.2])
    raw = np.eye(3)[labels] + np.random.default_rng(seed).normal(0, noise, (images, 3))
    probabilities = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    ids = np.array([f"L{number // 2}" for number in range(images)], dtype=object)
    names, malignant = ("mel", "nv", "bcc"), (True, False, True)
    return Predictions(names, probabilities, labels, probabilities.argmax(1), ids, malignant)


def differences(first: Predictions, second: Predictions) -> dict[str, Difference]:
    found = compare((first, [POINT]), (second, [POINT]), draws=300, seed=3)
    return {one.metric: one for one in found}


def test_a_better_model_is_called_better_in_whichever_place_it_stands() -> None:
    good, poor = make(0.4), make(1.2)
    there, back = differences(poor, good), differences(good, poor)
    area = there["AUROC, malignant"]
    assert next(iter(there)) == "AUROC, malignant", "what they are judged by comes first"
    assert area.value == pytest.approx(area.second - area.first)
    assert 0 < area.low < area.value < area.high
    assert area.sentence().endswith("the second model is better, by more than chance.")
    assert back["AUROC, malignant"].sentence().endswith("the first model is better, by more than chance.")
    assert back["AUROC, malignant"].value == -area.value
    assert "the second model is higher; of so many metrics" in there["AUROC, macro"].sentence()
    assert {"Sensitivity, rule-out", "Specificity, rule-out"} < set(there)


def test_another_threshold_makes_no_better_model() -> None:
    model = make(0.8)
    found = compare((model, [POINT]), (model, [replace(POINT, threshold=0.2)]), draws=300, seed=3)
    sentences = [one.sentence() for one in found]
    assert not any("better" in sentence for sentence in sentences)
    assert any("the second model finds more" in sentence for sentence in sentences)
    assert any("the first model gives fewer false alarms" in sentence for sentence in sentences)
    other = replace(POINT, target="mel")
    names = {one.metric for one in compare((model, [POINT]), (model, [other]), draws=100, seed=3)}
    assert "Sensitivity, rule-out" not in names, "thresholds of one name, on different targets"


@pytest.mark.parametrize(("unlike", "is_real"), [(4, False), (5, False), (6, True)])
def test_a_few_lesions_judged_unlike_are_no_proof(unlike: int, is_real: bool) -> None:  # noqa: FBT001
    """Exact McNemar: 5 of 5 have p = 0.0625, 6 of 6 have p = 0.031."""
    labels = np.repeat([0, 1], [40, 60])
    ids = np.array([f"L{number}" for number in range(100)], dtype=object)

    def model(found: int) -> Predictions:
        score = np.where(np.arange(100) < found, 0.9, 0.1)
        probabilities = np.stack([score, 1 - score], axis=1)
        return Predictions(("mel", "nv"), probabilities, labels, probabilities.argmax(1), ids, (True, False))

    found = {
        one.metric: one
        for one in compare((model(30), [POINT]), (model(30 + unlike), [POINT]), draws=1000, seed=1)
    }
    sensitivity = found["Sensitivity, rule-out"]
    assert sensitivity.value == pytest.approx(unlike / 40)
    assert sensitivity.is_real() == is_real


def test_of_one_or_two_lesions_nothing_is_said() -> None:
    labels = np.repeat([0, 1], [2, 60])
    ids = np.array([f"L{number}" for number in range(62)], dtype=object)
    models = []
    for score_of_mel in (0.1, 0.9):
        score = np.where(labels == 0, score_of_mel, 0.2)
        probabilities = np.stack([score, 1 - score], axis=1)
        models.append(
            Predictions(("mel", "nv"), probabilities, labels, probabilities.argmax(1), ids, (True, False))
        )
    for one in compare((models[0], [POINT]), (models[1], [POINT]), draws=200, seed=1):
        assert not one.is_real(), one.sentence()


def test_a_model_does_not_differ_from_itself() -> None:
    for found in differences(make(0.8), make(0.8)).values():
        assert found.value == 0
        assert "cannot tell the models apart" in found.sentence()


def test_the_difference_is_paired() -> None:
    """Both models err on the same lesions, so that their difference is surer than either value."""
    first = make(0.8)
    second = replace(first, probabilities=0.9 * first.probabilities + 0.1 * make(0.8, seed=2).probabilities)
    paired = differences(first, second)["AUROC, macro"]
    apart = differences(first, make(0.8, seed=2))["AUROC, macro"]
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)


def test_equally_good_models_are_told_apart_about_as_rarely_as_the_interval_says() -> None:
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(40):
        one, two = (make(0.8, images=200, seed=int(rng.integers(1 << 30))) for _ in range(2))
        wrong += compare((one, []), (two, []), draws=200, seed=1)[0].is_real()
    assert wrong <= 6


def test_other_images_are_refused_and_what_is_undefined_is_said() -> None:
    one = make(0.5)
    with pytest.raises(ValueError, match="of the same images"):
        compare((one, []), (make(0.5, images=500), []), draws=100, seed=1)
    assert (
        Difference("Recall", None, 0.5, None, None, None).sentence() == "Recall: undefined on these images."
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Red melanomas and green nevi, one a lesion; every third melanoma is greenish."""
    folder, rows = tmp_path / "images", []
    with ImagePacker(folder) as packer:
        for number in range(24):
            is_mel = number % 2 == 0
            color = (120, 140, 5) if number % 6 == 0 else (220, 30, 5) if is_mel else (30, 220, 5)
            Image.new("RGB", (40, 50), color).save(tmp_path / "picture.png")
            shard, offset, size = packer.add(f"{number}.png", (tmp_path / "picture.png").read_bytes())
            row = dict.fromkeys(COLUMNS) | {"label": "mel" if is_mel else "nv", "split": "test"}
            row |= {"image_id": f"I{number}", "lesion_id": f"L{number}", "group_id": f"L{number}"}
            row |= {
                "sha256": f"{number:064}",
                "width": 1,
                "height": 1,
                "shard": shard,
                "offset": offset,
                "size": size,
            }
            rows.append(row)
    write_table(pd.DataFrame(rows).infer_objects(), folder / "images.parquet")
    prints = np.random.default_rng(0).integers(0, 256, (24, SIDE, SIDE), dtype=np.uint8)
    np.save(folder / PRINTS, prints)
    return folder


def test_bundles_are_compared_on_test_images_that_neither_was_trained_on(
    images: Path, tmp_path: Path, make_graph: Callable[..., bytes], tiny_manifest: Manifest
) -> None:
    manifest = replace(tiny_manifest, lineage={"images_sha256": table_sha256(images)})
    careful = replace(manifest.operating_points[0], threshold=0.1)
    for name, changed in (("one", manifest), ("two", replace(manifest, operating_points=(careful,)))):
        write_bundle(tmp_path / name, model=make_graph(), manifest=changed, card="# Card")
    found = {
        one.metric: one
        for one in compare_bundles(tmp_path / "one", tmp_path / "two", images=images, draws=200, seed=1)
    }
    assert found["AUROC, macro"].value == 0
    sensitivity = found["Sensitivity, mel"]
    assert (sensitivity.first, sensitivity.second) == (pytest.approx(8 / 12), 1)
    assert sensitivity.sentence().endswith("these images cannot tell the models apart."), "4 of 12: p = 0.125"


def test_a_bundle_of_another_split_is_refused(images: Path, tiny_bundle: Path) -> None:
    with pytest.raises(DataError, match="trained on another image table"):
        compare_bundles(tiny_bundle, tiny_bundle, images=images, draws=100, seed=1)
