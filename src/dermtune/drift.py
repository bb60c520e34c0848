"""Do the images of today look, to the model, as those did that it was calibrated on?

Inputs, embeddings, predictions and abstention of recent images are held against a reference: the champion's
answers to the validation images. What this cannot tell:

- whether the model errs more: that takes diagnoses. It may fail without drift, and drift without failing.
- why: a clinic's patients and its mix of diagnoses differ from those of any training archive, so that
  predictions may drift on the first day, and rightly. Then the first weeks in use are the better reference.
- anything of a single image: for that, the model abstains.

Images of one lesion resemble each other. Of the reference the tests therefore count lesions. Of recent images
nobody knows which show the same lesion, so that the tests are surer than they should be where many do. This
is one reason why an alarm takes an effect that matters as well.
"""

import io
import json
import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import binomtest, chi2_contingency, fisher_exact, ks_2samp, kstwobign

from dermtune.compare import is_made_of
from dermtune.errors import DataError
from dermtune.inference import look_at_images
from dermtune.scoring import EMBEDDING
from dermtune.shards import PackedImages, places
from dermtune.table import read_table
from dermtune.upkeep import MonitorConfig
from dermtune_bundle.bundle import Bundle

REFERENCE: Final = "reference.parquet"
"""Name of the reference beside its bundle in a registry."""
PROBABILITY: Final = "probability."
"""What the columns of the classes' probabilities begin with."""
MEASURED: Final = {
    "sharpness": "sharpness",
    "brightness": "brightness",
    "side": "shorter side, pixels",
    "distance": "distance to known images",
}
"""Columns of single numbers, and what people call them."""
Kind = Literal["inputs", "embeddings", "predictions", "abstention", "failures"]
Verdict = Literal["alarm", "differs a little", "as usual", "too few to say"]

_LEAST_REFERENCE = 30  # lesions
_COMPARED = 400  # embeddings of each side, at most: time grows with their square
_DRAWN_AT_ONCE = 500  # permutations
_LEAST_EXPECTED = 5  # images in a cell of the chi-square test (Cochran, Biometrics 1954)


@dataclass(frozen=True)
class Recent:
    """What was scored in the last days."""

    table: pd.DataFrame
    """A row an answered image: the columns of the reference, and `day`."""
    failed: int
    """Files that got no answer."""


@dataclass(frozen=True)
class Finding:
    """One check: did one property change?"""

    kind: Kind
    what: str
    test: str
    reference: str
    """What is usual, for people …"""
    recent: str
    """… and what is so now."""
    effect: float
    """How large the difference is: 0 none, 1 nothing in common."""
    chance: float
    """How probable such a difference is without drift (Holm's correction included)."""
    verdict: Verdict

    @property
    def is_alarm(self) -> bool:
        """Is the difference more than chance, and large enough to matter?"""
        return self.verdict == "alarm"


def make_reference(bundle: Bundle, images: Path) -> bytes:
    """What a bundle says of the images that it was calibrated on, as Parquet without names.

    Args:
        bundle: opened with one thread, for images are looked at in parallel.
        images: the folder that ingest wrote when the bundle was made.

    Raises:
        DataError: the folder holds other images than the bundle was made from, or too few of validation.
        ImageError: an image can't be read.
    """
    from dermtune.limits import distances_to_others  # noqa: PLC0415 - it loads torch, for seconds

    if not is_made_of(bundle, images):
        raise DataError(f"{images}: holds other images than those that the bundle was made from")
    table = read_table(images / "images.parquet", split="val")
    if table.empty:
        raise DataError(f"{images}: has no validation images to compare others with")
    seen = look_at_images(bundle.graph, PackedImages(images), places(table), description="reference")
    distances, _ = distances_to_others(seen.embeddings, table)
    classes = bundle.manifest.classes
    limits, named = bundle.manifest.limits, bundle.manifest.named(seen.probabilities)
    rows = pd.DataFrame([astuple(one) for one in seen.qualities], columns=["sharpness", "brightness", "side"])
    rows["distance"] = distances.astype(np.float64)
    rows["predicted"] = [classes[column].name for column in named]
    rows["abstains"] = [
        bool(limits.reasons(float(distance), quality))
        for distance, quality in zip(distances, seen.qualities, strict=True)
    ]
    for column, known in enumerate(classes):
        rows[f"{PROBABILITY}{known.name}"] = seen.probabilities[:, column]
    rows["embedding"] = [row.tobytes() for row in seen.embeddings.astype(EMBEDDING)]
    rows["lesion"] = pd.factorize(table["group_id"])[0]
    return write_reference(rows)


def write_reference(table: pd.DataFrame) -> bytes:
    """A reference as Parquet."""
    file = io.BytesIO()
    table.to_parquet(file, index=False)
    return file.getvalue()


def read_reference(content: bytes | None, *, name: str) -> pd.DataFrame:
    """Read what `make_reference` made.

    Args:
        content: None: nothing is kept.
        name: what error messages call it.

    Raises:
        DataError: there is none, or it is damaged.
    """
    if content is None:
        raise DataError(
            f"{name}: keeps no reference; `dermtune registry promote BUNDLE --images data/ingest` adds it"
        )
    try:
        table = pd.read_parquet(io.BytesIO(content))
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: the reference is damaged: {error}") from error
    return table


def read_recent(scores: Path, version: str, *, since: datetime) -> Recent:
    """What a bundle answered from a time on.

    Args:
        scores: the SQLite file that `score` wrote.
        version: the bundle's.
        since: in UTC.

    Raises:
        DataError: there is no such file, or it holds no scores.
    """
    if not scores.is_file():
        raise DataError(f"{scores}: no such file; `score` writes it")
    # A new champion answers old images anew: what counts is when the first one saw them.
    query = """SELECT substr(first, 1, 10) AS day, answer, error, sharpness, brightness, side, embedding
               FROM scores JOIN (SELECT sha256 AS image, min(at) AS first FROM scores GROUP BY sha256)
               ON sha256 = image WHERE bundle = ? AND first >= ? ORDER BY first, sha256"""
    try:
        with closing(
            sqlite3.connect(f"{scores.resolve().as_uri()}?mode=ro", uri=True, timeout=60)
        ) as database:
            rows = pd.read_sql_query(
                query, database, params=(version, since.isoformat(timespec="seconds")), dtype={"day": str}
            )
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise DataError(f"{scores}: no scores that can be read: {error}") from error
    answered = rows[rows["error"].isna()].reset_index(drop=True)
    return Recent(_with_answers(answered), len(rows) - len(answered))


def _with_answers(rows: pd.DataFrame) -> pd.DataFrame:
    answers = [json.loads(answer) for answer in rows["answer"]]
    rows = rows.drop(columns=["answer", "error"]).assign(
        distance=np.array([answer["distance"] for answer in answers], np.float64),
        predicted=[answer["predicted"] for answer in answers],
        abstains=np.array([bool(answer["abstain"]) for answer in answers], bool),
    )
    for name in answers[0]["probabilities"] if answers else ():
        values = np.array([answer["probabilities"][name] for answer in answers], np.float64)
        rows[f"{PROBABILITY}{name}"] = values
    return rows


def measure_drift(
    reference: pd.DataFrame, recent: Recent, config: MonitorConfig, *, rng: np.random.Generator
) -> list[Finding]:
    """Hold recent images against the reference.

    An alarm takes a difference that chance does not explain (p below `config.level` after Holm's correction
    for all tests) and that is large enough to matter (`config.effect`), for of thousands of images any trifle
    is more than chance. Files that failed are a finding of their own, which needs no reference.

    Args:
        reference: as of `read_reference`.
        recent: as of `read_recent`, of the same bundle.
        config: what counts.
        rng: draws the embeddings that are compared, and their permutations.

    Raises:
        DataError: the reference is of other classes.
    """
    failed = _failures(recent, config)
    if len(recent.table) < config.least or _independent(reference) < _LEAST_REFERENCE:
        kinds: Sequence[Kind] = ("inputs", "embeddings", "predictions", "abstention")
        return [
            *(Finding(kind, kind, "", "", "", math.nan, math.nan, "too few to say") for kind in kinds),
            failed,
        ]
    classes = _classes(reference)
    if classes != _classes(recent.table):
        raise DataError("the reference is of other classes than the answers; it belongs to another bundle")
    found = [
        _numbers("inputs", name, reference, recent.table) for name in ("sharpness", "brightness", "side")
    ]
    found.append(_numbers("embeddings", "distance", reference, recent.table))
    tests = len(MEASURED) + len(classes) + 3
    # so many that the smallest possible p can pass Holm's correction
    permutations = math.ceil(5 * tests / config.level)
    found.append(_embeddings(reference, recent.table, permutations=permutations, rng=rng))
    found += [_numbers("predictions", f"{PROBABILITY}{name}", reference, recent.table) for name in classes]
    found.append(_named(reference, recent.table, classes))
    found.append(_abstention(reference, recent.table))
    adjusted = holm([finding.chance for finding in found])
    return [*(_judged(one, chance, config) for one, chance in zip(found, adjusted, strict=True)), failed]


def holm(chances: Sequence[float]) -> list[float]:
    """Adjust p-values so that one below a level is false with at most that chance, of all together.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics
    1979.
    """
    order = np.argsort(chances, kind="stable")
    steps = np.sort(chances) * np.arange(len(chances), 0, -1)
    adjusted = np.empty(len(chances))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    values: list[float] = adjusted.tolist()
    return values


def energy_test(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    *,
    permutations: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """Are two sets of vectors, (N, F) and (M, F), drawn from one distribution?

    Returns:
        The effect: the square root of the energy coefficient, 0 for one distribution, at most 1; and how
        probable one so large is, by random permutations.

    Source: Székely and Rizzo, Energy Statistics, Journal of Statistical Planning and Inference 2013; without
    the bias of the distances of vectors to themselves.
    """
    pooled = np.concatenate([first, second]).astype(np.float64)
    distances = cdist(pooled, pooled)
    sums, total = distances.sum(axis=1), distances.sum()
    here, there = len(first), len(second)

    def energy(is_first: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energy distance, and twice the mean distance across, of each row's division (P, N + M)."""
        inside = np.einsum("pn,pn->p", is_first @ distances, is_first)
        outgoing = is_first @ sums
        across = 2 * (outgoing - inside) / (here * there)
        beyond = (total - 2 * outgoing + inside) / (there * (there - 1))
        return across - inside / (here * (here - 1)) - beyond, across

    divided = np.repeat([1.0, 0.0], [here, there])
    (measured,), (across,) = energy(divided[np.newaxis])
    as_large, left = 1, permutations
    while left:
        count = min(left, _DRAWN_AT_ONCE)
        drawn, _ = energy(rng.permuted(np.tile(divided, (count, 1)), axis=1))
        as_large += int((drawn >= measured - 1e-12 * across).sum())
        left -= count
    effect = math.sqrt(max(0.0, measured) / across) if across > 0 else 0.0
    return effect, as_large / (permutations + 1)


def _numbers(kind: Kind, column: str, reference: pd.DataFrame, recent: pd.DataFrame) -> Finding:
    first, second = reference[column].to_numpy(float), recent[column].to_numpy(float)
    gap = float(ks_2samp(first, second, method="asymp").statistic)
    here, there = _independent(reference), _independent(recent)
    chance = float(kstwobign.sf(gap * math.sqrt(here * there / (here + there))))
    what = MEASURED.get(column, f"probability of {column.removeprefix(PROBABILITY)}")
    usual, now = (f"median {np.median(values):.3g}" for values in (first, second))
    return Finding(kind, what, "Kolmogorov-Smirnov", usual, now, gap, chance, "as usual")


def _embeddings(
    reference: pd.DataFrame, recent: pd.DataFrame, *, permutations: int, rng: np.random.Generator
) -> Finding:
    first, second = (_some_embeddings(table, rng) for table in (reference, recent))
    effect, chance = energy_test(first, second, permutations=permutations, rng=rng)
    usual, now = (f"{len(part)} images compared" for part in (first, second))
    return Finding("embeddings", "embedding", "energy, permutations", usual, now, effect, chance, "as usual")


def _some_embeddings(table: pd.DataFrame, rng: np.random.Generator) -> NDArray[np.float32]:
    rows = rng.permutation(len(table))[: min(_COMPARED, _independent(table))]
    return np.array([np.frombuffer(table["embedding"].iloc[row], EMBEDDING) for row in rows], np.float32)


def _independent(table: pd.DataFrame) -> int:
    """Lesions, where they are known; else images."""
    return int(table["lesion"].nunique()) if "lesion" in table else len(table)


def _named(reference: pd.DataFrame, recent: pd.DataFrame, classes: list[str]) -> Finding:
    counts = np.array(
        [table["predicted"].value_counts().reindex(classes, fill_value=0) for table in (reference, recent)]
    )
    shares = counts / counts.sum(axis=1, keepdims=True)
    moved = int(np.abs(shares[1] - shares[0]).argmax())
    usual, now = (f"{classes[moved]} {share:.0%}" for share in shares[:, moved])
    counts = shares * [[_independent(reference)], [_independent(recent)]]
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / counts.sum()
    is_rare = expected < _LEAST_EXPECTED
    cells = np.column_stack([counts[:, ~is_rare], counts[:, is_rare].sum(axis=1)])
    cells = cells[:, cells.sum(axis=0) > 0]
    chance = float(chi2_contingency(cells).pvalue) if cells.shape[1] > 1 else 1.0
    distance = float(np.abs(shares[1] - shares[0]).sum() / 2)
    return Finding("predictions", "class named", "chi-square", usual, now, distance, chance, "as usual")


def _abstention(reference: pd.DataFrame, recent: pd.DataFrame) -> Finding:
    counts = []
    for table in (reference, recent):
        everything = _independent(table)
        yes = round(everything * table["abstains"].mean())
        counts.append([yes, everything - yes])
    chance = float(fisher_exact(counts).pvalue)
    usual, now = (float(table["abstains"].mean()) for table in (reference, recent))
    return Finding(
        "abstention",
        "share that abstains",
        "Fisher's exact",
        f"{usual:.1%}",
        f"{now:.1%}",
        abs(now - usual),
        chance,
        "as usual",
    )


def _failures(recent: Recent, config: MonitorConfig) -> Finding:
    """The exact test needs no least number: of few files it says nothing, unless nearly all of them fail."""
    files = recent.failed + len(recent.table)
    share = recent.failed / files if files else 0.0
    chance = 1.0
    if files:
        chance = float(binomtest(recent.failed, files, config.unanswered, alternative="greater").pvalue)
    usual: Verdict = "as usual" if files >= config.least else "too few to say"
    return Finding(
        "failures",
        "share of files that fail",
        "binomial",
        f"at most {config.unanswered:.1%}",
        f"{share:.1%}",
        share,
        chance,
        "alarm" if chance < config.level else usual,
    )


def _judged(finding: Finding, chance: float, config: MonitorConfig) -> Finding:
    verdict: Verdict = "as usual"
    if chance < config.level:
        verdict = "alarm" if finding.effect >= config.effect else "differs a little"
    return replace(finding, chance=chance, verdict=verdict)


def _classes(table: pd.DataFrame) -> list[str]:
    return sorted(str(name).removeprefix(PROBABILITY) for name in table if str(name).startswith(PROBABILITY))


def conclude(findings: Sequence[Finding], recent: Recent, config: MonitorConfig) -> str:
    """What was found, in one line without any image's name."""
    window = f"{len(recent.table)} images answered, {recent.failed} failed in {config.days} days"
    if alarms := [finding.what for finding in findings if finding.is_alarm]:
        return f"{len(alarms)} of {len(findings)} checks raise an alarm: {', '.join(alarms)} ({window})"
    if any(finding.verdict == "too few to say" for finding in findings):
        needed = f"{config.least} images and a reference of {_LEAST_REFERENCE} lesions"
        return f"too few to say: {window}; it takes {needed}"
    return f"no drift that matters: {window}"


def window_start(now: datetime, config: MonitorConfig) -> datetime:
    """From when on images are recent."""
    return now - timedelta(days=config.days)
