from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dermtune.appearance import MASKS
from dermtune.compare import Difference
from dermtune.duplicates import SIDE
from dermtune.errors import DataError
from dermtune.leakage import PRINTS
from dermtune.metrics import Predictions
from dermtune.promotion import (
    ALL,
    Judged,
    Verdict,
    compare_with_champion,
    judge,
    learned_from,
    least_lesions,
)
from dermtune.shards import ImagePacker
from dermtune.table import COLUMNS, table_sha256, write_table
from dermtune.upkeep import RetrainConfig
from dermtune_bundle.bundle import write_bundle
from dermtune_bundle.manifest import Manifest, OperatingPoint

POINT = OperatingPoint("rule-out", "malignant", 0.5, "a goal", None, None)
CONFIG = RetrainConfig.parse(
    {"margin": {"auroc": 0.02, "sensitivity": 0.03, "specificity": 0.05}, "subgroup_margin": 0.10},
    source="a test",
)


def make(scores: np.ndarray, labels: np.ndarray) -> tuple[Predictions, list[OperatingPoint]]:
    """Of as many lesions; label 0 is malignant."""
    probabilities = np.stack([scores, 1 - scores], axis=1)
    ids = np.array([f"L{number}" for number in range(len(labels))], dtype=object)
    named = probabilities.argmax(1)
    return Predictions(("mel", "nv"), probabilities, labels, named, ids, (True, False)), [POINT]


LABELS = np.tile([0, 1], 400)
SEX = np.repeat(["female", "male"], 400)


def scores(*, noise: float = 0.12, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(np.where(LABELS == 0, 0.7, 0.3) + rng.normal(0, noise, len(LABELS)), 0, 1)


def judged(champion: np.ndarray, candidate: np.ndarray) -> dict[tuple[str, str], Judged]:
    groups = pd.DataFrame({"sex": SEX, "age": "not given"})
    found = judge(make(champion, LABELS), make(candidate, LABELS), groups, CONFIG, draws=300, seed=1)
    return {(one.where, one.difference.metric): one for one in found}


def test_a_model_as_good_is_no_worse_anywhere() -> None:
    found = judged(scores(), scores())
    assert {where for where, _ in found} == {ALL, "Sex: female", "Sex: male"}
    assert {one.verdict for one in found.values()} == {"no worse"}
    assert all(one.is_met for one in found.values())
    assert [one.is_primary for one in found.values()].count(True) == 1


def test_a_worse_model_is_refused_and_a_better_one_is_not() -> None:
    worse, better = judged(scores(), scores(noise=0.3)), judged(scores(noise=0.3), scores())
    assert not worse[ALL, "AUROC, malignant"].is_met
    assert "worse" in worse[ALL, "AUROC, malignant"].sentence()
    assert all(one.is_met for one in better.values())


def test_agreement_on_few_lesions_shows_nothing() -> None:
    few = np.isin(np.arange(len(LABELS)), np.arange(40))
    predictions, points = make(scores(), LABELS)
    part = predictions.only(few)
    for images in ((part, part), (part, replace(part, probabilities=part.probabilities * 0.999))):
        pair = [(one, points) for one in images]
        found = judge(*pair, pd.DataFrame({"sex": SEX[few]}), CONFIG, draws=200, seed=1)
        assert (found[0].verdict, found[0].is_met) == ("too few lesions", False)
        assert {one.verdict for one in found[1:]} == {"cannot tell"}


def test_harm_to_one_group_is_seen_though_the_whole_gains() -> None:
    before = scores(noise=0.2)
    after = scores(noise=0.1)
    of_group = (SEX == "male") & (LABELS == 0)
    after[np.flatnonzero(of_group)[:60]] = 0.4  # the candidate misses 60 of 200 melanomas of men
    found = judged(before, after)
    assert found["Sex: male", "sensitivity, rule-out"].verdict == "worse"
    assert not found["Sex: male", "sensitivity, rule-out"].is_met
    assert found["Sex: female", "sensitivity, rule-out"].is_met
    assert found[ALL, "AUROC, malignant"].verdict == "no worse"


def difference(value: float | None, low: float | None, high: float | None) -> Difference:
    return Difference("AUROC", 0.9, None if value is None else 0.9 + value, value, low, high)


@pytest.mark.parametrize(
    ("found", "lesions", "verdict", "is_met_by_first", "is_met_by_all", "is_met_by_group"),
    [
        (difference(0.0, -0.01, 0.01), 50, "no worse", True, True, True),
        (difference(0.0, -0.2, 0.2), 50, "cannot tell", False, True, True),
        (difference(-0.15, -0.4, 0.1), 50, "worse", False, False, False),
        (difference(-0.06, -0.12, -0.01), 50, "worse", False, False, False),
        (difference(None, None, None), 50, "too few lesions", False, False, True),
        (difference(-0.5, None, None), 3, "too few lesions", False, False, True),
    ],
)
def test_what_must_be_shown_and_what_must_not_be_found(  # noqa: PLR0917
    found: Difference,
    lesions: int,
    verdict: str,
    is_met_by_first: bool,  # noqa: FBT001
    is_met_by_all: bool,  # noqa: FBT001
    is_met_by_group: bool,  # noqa: FBT001
) -> None:
    first = Judged(ALL, found, 0.10, lesions, 36, is_primary=True)
    assert first.verdict == verdict
    assert first.is_met == is_met_by_first
    assert replace(first, is_primary=False).is_met == is_met_by_all
    assert Judged("Sex: male", found, 0.10, lesions, 36).is_met == is_met_by_group


def test_a_small_group_is_not_judged_and_a_large_one_is() -> None:
    """None of 36 differs: the exact bound is 0.0974; of 35, it is 0.1."""
    assert least_lesions(0.10) == 36
    assert 1 - 0.025 ** (1 / 36) < 0.10 < 1 - 0.025 ** (1 / 34)
    bad = difference(-0.3, -0.5, -0.1)
    assert Judged("Sex: male", bad, 0.10, 35, 36).verdict == "too few lesions"
    assert Judged("Sex: male", bad, 0.10, 36, 36).verdict == "worse"
    assert Judged(ALL, bad, 0.10, 35, 36).verdict == "worse", "harm counts however few"


MakeImages = Callable[..., Path]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """Red melanomas and green nevi, one a lesion: 24 of test, then 6 of train and val."""

    def make_folder(name: str, *, first: int = 0, test: int = 24) -> Path:
        folder, rows = tmp_path / name, []
        with ImagePacker(folder) as packer:
            for number in range(first, first + test + 6):
                is_mel, is_test = number % 2 == 0, number < first + test
                Image.new("RGB", (40, 50), (220, 30, 5) if is_mel else (30, 220, 5)).save(
                    tmp_path / "one.png"
                )
                shard, offset, size = packer.add(f"{number}.png", (tmp_path / "one.png").read_bytes())
                row = dict.fromkeys(COLUMNS) | {"label": "mel" if is_mel else "nv", "source": "folder"}
                row |= {"split": "test" if is_test else "train" if is_mel else "val"}
                row |= {"image_id": f"I{number}", "lesion_id": f"L{number}", "group_id": f"G{number}"}
                row |= {"sha256": f"{number:064}", "width": 40, "height": 50, "has_mask": False}
                rows.append(row | {"shard": shard, "offset": offset, "size": size})
        write_table(pd.DataFrame(rows).infer_objects(), folder / "images.parquet")
        prints = np.random.default_rng(0).integers(0, 256, (len(rows), SIDE, SIDE), dtype=np.uint8)
        np.save(folder / PRINTS, prints)
        np.save(folder / MASKS, np.zeros((len(rows), 8), np.uint8))
        return folder

    return make_folder


@pytest.fixture
def make_bundle(
    tmp_path: Path, make_graph: Callable[..., bytes], tiny_manifest: Manifest
) -> Callable[..., Path]:
    def make_folder(name: str, images: Path, **changes: object) -> Path:
        lineage = {"images_sha256": table_sha256(images), "name": name}
        manifest = replace(tiny_manifest, golden=(), lineage=lineage, **changes)
        write_bundle(tmp_path / name, model=make_graph(), manifest=manifest, card="# Card")
        return tmp_path / name

    return make_folder


def decide(champion: Path, candidate: Path, images: Path, learned: frozenset[str] | None) -> Verdict:
    margin = {"auroc": 0.3, "sensitivity": 0.3, "specificity": 0.3}  # of so few lesions
    config = RetrainConfig.parse({"margin": margin, "subgroup_margin": 0.3}, source="a test")
    return compare_with_champion(
        champion, candidate, config, images=images, learned=learned, draws=200, seed=1
    )


def test_what_the_champion_has_learned_from_is_not_tested_on(
    make_images: MakeImages, make_bundle: Callable[..., Path]
) -> None:
    old, new = make_images("old"), make_images("new", first=4, test=40)  # 24 to 29 were trained on
    champion, candidate = make_bundle("champion", old), make_bundle("candidate", new)
    learned = learned_from(old)
    assert b"L25" not in learned, "no id of a lesion"
    verdict = decide(champion, candidate, new, frozenset(learned.decode().split()))
    assert verdict.is_promoted, verdict.reasons
    assert verdict.lesions == 40 - 6
    one_word = frozenset(word for word in learned.decode().split() if not word.startswith("0" * 30))
    assert decide(champion, candidate, new, one_word).lesions == 40 - 6, "by the lesion, whatever the file"


def test_a_blunter_threshold_is_refused(make_images: MakeImages, make_bundle: Callable[..., Path]) -> None:
    images = make_images("images")
    blunt = OperatingPoint("mel", "mel", 0.999, "sensitivity >= 0.90 on validation", 0.92, 0.81)
    candidate = make_bundle("candidate", images, operating_points=(blunt,))
    verdict = decide(make_bundle("champion", images), candidate, images, None)
    assert not verdict.is_promoted
    reason = verdict.reasons[0]
    assert reason.startswith(
        "all lesions: sensitivity, mel: 1.000, now 0.000, a difference of -1.000 [-1.000, "
    )
    assert reason.endswith("of 12 lesions, margin 0.3: worse")


def test_what_cannot_be_compared_is_refused_with_the_reason(
    make_images: MakeImages, make_bundle: Callable[..., Path], tiny_manifest: Manifest
) -> None:
    images, other = make_images("images"), make_images("other", first=2)
    champion, candidate = make_bundle("champion", other), make_bundle("candidate", images)
    assert "nobody knows" in decide(champion, candidate, images, None).reasons[0]
    everything = learned_from(make_images("all", first=24, test=0)) + learned_from(images)
    hashes = frozenset(everything.decode().split()) | {f"{number:064}" for number in range(24)}
    assert decide(champion, candidate, images, hashes).reasons == [
        "the champion has learned from every test lesion"
    ]
    fewer = make_bundle("fewer", images, operating_points=())
    assert "operating points mel" in decide(champion, fewer, images, frozenset()).reasons[0]
    benign = tuple(replace(one, malignant=False) for one in tiny_manifest.classes)
    others = make_bundle("others", images, classes=benign)
    assert "other classes" in decide(champion, others, images, frozenset()).reasons[0]
    with pytest.raises(DataError, match="trained on another image table"):
        decide(champion, champion, images, frozenset())
