"""Drift is found where there is some, rarely where there is none, and not said of too few images."""

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from dermtune.cli import cli
from dermtune.drift import (
    REFERENCE,
    Finding,
    Recent,
    conclude,
    energy_test,
    holm,
    make_reference,
    measure_drift,
    read_recent,
    read_reference,
    write_reference,
)
from dermtune.errors import DataError
from dermtune.registry import Registry
from dermtune.scoring import EMBEDDING, score_inbox
from dermtune.table import read_table, table_sha256
from dermtune.upkeep import MonitorConfig
from dermtune_bundle import Bundle
from dermtune_bundle.bundle import write_bundle

CONFIG = MonitorConfig(days=7, least=50, level=0.01, effect=0.2, unanswered=0.2)
CLASSES = ["bcc", "mel", "nv"]


def answers(count: int, rng: np.random.Generator, *, shift: float = 0.0) -> pd.DataFrame:
    """What a model might say of images; `shift` moves the embeddings, in standard deviations."""
    probabilities = rng.dirichlet([1, 2, 4], count)
    table = pd.DataFrame({f"probability.{name}": probabilities[:, i] for i, name in enumerate(CLASSES)})
    vectors = rng.normal(shift, 1, (count, 16)).astype(EMBEDDING)
    return table.assign(
        sharpness=rng.gamma(5, 2, count),
        brightness=rng.normal(150, 20, count),
        side=rng.choice([450, 600], count),
        distance=rng.beta(2, 8, count),
        predicted=[CLASSES[column] for column in probabilities.argmax(axis=1)],
        abstains=rng.random(count) < 0.1,
        embedding=[vector.tobytes() for vector in vectors],
    )


def look(
    reference: pd.DataFrame, recent: pd.DataFrame, *, failed: int = 0, config: MonitorConfig = CONFIG
) -> dict[str, Finding]:
    found = measure_drift(reference, Recent(recent, failed), config, rng=np.random.default_rng(0))
    return {finding.what: finding for finding in found}


def alarms(found: dict[str, Finding]) -> set[str]:
    return {what for what, finding in found.items() if finding.is_alarm}


@pytest.fixture(scope="module")
def reference() -> pd.DataFrame:
    return answers(300, np.random.default_rng(1))


@pytest.fixture
def recent() -> pd.DataFrame:
    return answers(120, np.random.default_rng(2))


@pytest.mark.slow
def test_what_is_drawn_from_the_reference_rarely_raises_an_alarm() -> None:
    """Without the least effect as well: the statistics alone keep their level."""
    pool, draws = answers(180, np.random.default_rng(3)), 100
    strict = CONFIG.model_copy(update={"effect": 0.0, "level": 0.05})
    false = {"as it is": 0, "without effect": 0}
    for seed in range(draws):
        rows = np.random.default_rng(seed).permutation(len(pool))
        one, other = pool.iloc[rows[:120]], pool.iloc[rows[120:]]
        false["as it is"] += bool(alarms(look(one, other)))
        false["without effect"] += bool(alarms(look(one, other, config=strict)))
    assert false["as it is"] <= 0.05 * draws
    assert false["without effect"] <= 0.1 * draws  # at most 5% expected; this is 2.3 deviations more


def test_each_kind_of_change_is_found_under_its_name(reference: pd.DataFrame, recent: pd.DataFrame) -> None:
    moved = answers(120, np.random.default_rng(2), shift=0.6)["embedding"]
    changes = {
        "sharpness": recent.assign(sharpness=recent["sharpness"] * 0.6),
        "brightness": recent.assign(brightness=recent["brightness"] - 20),
        "shorter side, pixels": recent.assign(side=450),
        "distance to known images": recent.assign(distance=recent["distance"] + 0.1),
        "embedding": recent.assign(embedding=moved),
        "probability of mel": recent.assign(**{"probability.mel": recent["probability.mel"] ** 2}),
        "class named": recent.assign(predicted=["mel", "nv"] * 60),
        "share that abstains": recent.assign(abstains=[True, False] * 60),
    }
    assert alarms(look(reference, recent)) == set()
    assert {what: alarms(look(reference, table)) for what, table in changes.items()} == {
        what: {what} for what in changes
    }


def test_embeddings_alone_can_raise_an_alarm_at_the_strictest_level(
    reference: pd.DataFrame, recent: pd.DataFrame
) -> None:
    """There must be enough permutations for so small a p, times the number of tests."""
    strictest = CONFIG.model_copy(update={"level": 0.001})
    moved = recent.assign(embedding=answers(120, np.random.default_rng(2), shift=0.6)["embedding"])
    assert alarms(look(reference, moved, config=strictest)) == {"embedding"}


def test_of_thousands_of_images_a_trifle_is_told_but_is_no_alarm() -> None:
    rng = np.random.default_rng(4)
    many, others = answers(5000, rng), answers(5000, rng)
    found = look(many, others.assign(brightness=others["brightness"] + 3))
    assert found["brightness"].verdict == "differs a little"
    assert alarms(found) == set()


def test_copies_of_lesions_do_not_make_the_tests_surer(reference: pd.DataFrame, recent: pd.DataFrame) -> None:
    darker = recent.assign(brightness=recent["brightness"] - 5)
    once = look(reference, darker)
    thrice = pd.concat([reference.assign(lesion=range(300))] * 3, ignore_index=True)
    again = look(thrice, darker)
    for what in ("brightness", "class named", "share that abstains"):
        assert again[what].chance == pytest.approx(once[what].chance)
        assert again[what].effect == pytest.approx(once[what].effect)
    surer = look(thrice.drop(columns="lesion"), darker)
    assert surer["brightness"].chance < 0.7 * once["brightness"].chance


@pytest.mark.parametrize(("references", "recents"), [(300, 49), (29, 120), (300, 0)])
def test_of_too_few_nothing_is_said_and_that_is_told(references: int, recents: int) -> None:
    rng = np.random.default_rng(5)
    few = Recent(answers(recents, rng).assign(brightness=0.0), 0)
    found = measure_drift(answers(references, rng), few, CONFIG, rng=rng)
    assert not any(finding.is_alarm for finding in found)
    assert [one.kind for one in found if one.verdict == "too few to say"][:4] == [
        "inputs",
        "embeddings",
        "predictions",
        "abstention",
    ]
    assert conclude(found, few, CONFIG).startswith(
        f"too few to say: {recents} images answered, 0 failed in 7"
    )


@pytest.mark.parametrize(
    ("answered", "failed", "verdict"),
    [
        (120, 10, "as usual"),
        (120, 36, "as usual"),
        (120, 60, "alarm"),
        (0, 10, "alarm"),
        (1, 1, "too few to say"),
    ],
)
def test_files_that_fail_are_an_alarm_of_their_own(
    reference: pd.DataFrame, answered: int, failed: int, verdict: str
) -> None:
    table = answers(answered, np.random.default_rng(6))
    found = look(reference, table, failed=failed)
    assert found["share of files that fail"].verdict == verdict
    assert alarms(found) == ({"share of files that fail"} if verdict == "alarm" else set())


def test_a_reference_of_other_classes_is_refused(reference: pd.DataFrame, recent: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="of other classes"):
        look(reference.rename(columns={"probability.mel": "probability.df"}), recent)


def test_p_values_are_adjusted_as_holm_says() -> None:
    assert holm([0.04, 0.01, 0.03, 0.6]) == pytest.approx([0.09, 0.04, 0.09, 0.6])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_the_energy_test_measures_what_it_should() -> None:
    rng = np.random.default_rng(7)
    first, second = rng.normal(0, 1, (12, 3)), rng.normal(1, 1, (9, 3))

    def mean_distance(one: np.ndarray, other: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if one is not other or i != j]
        return float(np.mean([np.linalg.norm(one[i] - other[j]) for i, j in pairs]))

    across = 2 * mean_distance(first, second)
    energy = across - mean_distance(first, first) - mean_distance(second, second)
    effect, chance = energy_test(first, second, permutations=1999, rng=rng)
    assert effect == pytest.approx(np.sqrt(energy / across))
    assert chance < 0.05
    assert energy_test(first, first + 9, permutations=999, rng=rng)[1] == pytest.approx(0.001)
    same = np.ones((8, 3))
    assert energy_test(same, same, permutations=99, rng=rng) == (0.0, 1.0)


@pytest.fixture
def bundle(tiny_bundle: Path, ingested: Path, tmp_path: Path) -> Path:
    """The tiny bundle, as if it had been made from the ingested images."""
    opened = Bundle.open(tiny_bundle)
    write_bundle(
        tmp_path / "made",
        model=(tiny_bundle / "model.onnx").read_bytes(),
        manifest=replace(opened.manifest, lineage={"images_sha256": table_sha256(ingested)}),
        card="# Card\n",
        further=opened.golden,
    )
    return tmp_path / "made"


def test_a_reference_holds_the_validation_images_and_none_of_their_names(
    bundle: Path, ingested: Path
) -> None:
    table = read_table(ingested / "images.parquet", split="val")
    reference = read_reference(make_reference(Bundle.open(bundle, threads=1), ingested), name="it")
    assert list(reference) == [
        *("sharpness", "brightness", "side", "distance", "predicted", "abstains"),
        *("probability.mel", "probability.nv", "probability.bcc", "embedding", "lesion"),
    ]
    assert len(reference) == len(table)
    assert reference["lesion"].nunique() == table["group_id"].nunique()
    vectors = np.array([np.frombuffer(one, EMBEDDING) for one in reference["embedding"]], float)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    others = unit[(table["group_id"] != table["group_id"][0]).to_numpy()]
    assert reference["distance"][0] == pytest.approx(1 - np.sort(others @ unit[0])[-5], abs=1e-4)


def test_a_reference_is_made_from_the_bundles_own_images(tiny_bundle: Path, ingested: Path) -> None:
    with pytest.raises(DataError, match="holds other images than those that the bundle was made from"):
        make_reference(Bundle.open(tiny_bundle), ingested)


def test_promote_keeps_a_reference_beside_the_bundle(bundle: Path, ingested: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "registry")
    command = ["registry", "--registry", url, "promote", "--reason", "first"]
    first = CliRunner().invoke(cli, [*command, str(bundle)], catch_exceptions=False)
    assert first.exit_code == 0
    kept = Registry(url)
    version = kept.champion()
    assert version is not None
    assert kept.beside(version, REFERENCE) is None
    later = CliRunner().invoke(
        cli, [*command, version[:12], "--images", str(ingested)], catch_exceptions=False
    )
    assert later.exit_code == 0
    assert len(read_reference(kept.beside(version, REFERENCE), name=url)) > 5
    assert kept.versions() == [version]


def test_a_reference_that_is_missing_or_damaged_is_told() -> None:
    with pytest.raises(DataError, match=r"reg: keeps no reference; .*promote BUNDLE --images"):
        read_reference(None, name="reg")
    with pytest.raises(DataError, match="reg: the reference is damaged"):
        read_reference(b"nothing", name="reg")


def test_recent_scores_are_those_of_the_window_and_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, inbox, out = Bundle.open(tiny_bundle), tmp_path / "inbox", tmp_path / "scores.db"
    inbox.mkdir()
    for name, color in (("old", "blue"), ("new", "red")):
        Image.new("RGB", (40, 56), color).save(inbox / f"{name}.png")
    (inbox / "bad.png").write_bytes(b"no image")
    score_inbox(tiny_bundle, str(inbox), out)
    now = datetime.now(UTC)
    with sqlite3.connect(out) as scores:
        old = (now - timedelta(days=8)).isoformat(timespec="seconds")
        scores.execute("UPDATE scores SET at = ? WHERE path = 'old.png'", (old,))
    found = read_recent(out, bundle.version, since=now - timedelta(days=7))
    assert found.failed == 1
    (row,) = found.table.to_dict("records")
    assert row["day"] == now.date().isoformat()
    assert (row["predicted"], row["side"], row["abstains"]) == ("mel", 40, False)
    assert row["probability.mel"] > 0.8
    assert np.frombuffer(row["embedding"], EMBEDDING).tolist() == [255, 0, 0]
    assert "path" not in row
    other = read_recent(out, "0" * 64, since=now - timedelta(days=7))
    assert len(other.table) == other.failed == 0


def test_scores_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.db: no such file; `score` writes it"):
        read_recent(tmp_path / "absent.db", "", since=datetime.now(UTC))
    (tmp_path / "other.db").write_bytes(b"no database" * 99)
    with pytest.raises(DataError, match=r"other\.db: no scores that can be read"):
        read_recent(tmp_path / "other.db", "", since=datetime.now(UTC))


def test_a_reference_is_read_as_it_was_written(reference: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(read_reference(write_reference(reference), name="it"), reference)
