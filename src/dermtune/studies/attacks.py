"""How small a change makes the deployable graph err? Attacks on it, and what training against them costs.

Gradients come from the torch module that the graph was exported from; what they lead to is rounded to whole
pixels, as a file holds them, and judged by model.onnx itself. Validation images are attacked; the test split
is not read.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from PIL import Image

from dermtune.csv_tables import write_tables
from dermtune.errors import ConfigError
from dermtune.figures import to_png
from dermtune.fingerprint import file_sha256
from dermtune.metrics import Estimate, estimate, resample, share
from dermtune.studies import AttacksConfig
from dermtune.studies.adversary import (
    NAMED,
    Flagging,
    Naming,
    Norm,
    Scores,
    flagging,
    judge,
    load_art,
    naming,
    target_columns,
)
from dermtune.studies.attacks_page import Picture, attack_curves, picture_sheet, render_attacks, verdict_on
from dermtune.studies.hardening import measure_hardening
from dermtune.studies.images import Images, read_images
from dermtune.studies.kept import Kept
from dermtune.studies.masking import Check, more_is_never_less, nothing_stands, weaker_does_not_win
from dermtune.studies.model import read_both
from dermtune.studies.overview import Section, write_study
from dermtune.studies.trials import (
    FULL,
    HUGE,
    Bools,
    Outcome,
    Rows,
    Target,
    Track,
    Trial,
    change,
    measure_attacks,
    rows_to_attack,
    still_right,
)
from dermtune.table import table_sha256
from dermtune.tails import TrainedTails
from dermtune_bundle.files import atomic_path
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract, OperatingPoint

if TYPE_CHECKING:
    from dermtune.params import Params

_ATTACKS: Final = {"white", "black"}
_SHOWN = 4
_NORMS: Final[tuple[Norm, ...]] = ("linf", "l2", "patch")


def run_attacks_study(
    params: "Params", *, images: Path, tails: Path, model: Path, checkpoint: Path, out: Path
) -> pd.DataFrame:
    """Attack the deployable graph, train against attacks, and write what came of it.

    Args:
        params: `study.attacks`; of the others `backbone`, `finetune`, `calibrate.operating_points`.
        images: what ingest wrote.
        tails: what finetune wrote.
        model: what calibrate wrote.
        checkpoint: file that keeps what is measured, until all is.
        out: the folder to write: attacked.csv, attacks.csv, checks.csv, hardening.csv, pictures.png, and as
            `write_study`.

    Returns:
        As `summarize`.

    Raises:
        ConfigError: the backbone cannot be loaded, ART is not installed, or the model lacks an operating
            point.
        DataError: something is missing, damaged or made from something else.
    """
    config = params.study.attacks
    load_art()
    trained, graph, contract = read_both(params.backbone, images=images, tails=tails, model=model)
    points = _points(contract, config.points)
    val = read_images(images, "val", contract.input.size)
    rows = rows_to_attack(
        val.labels,
        val.lesions,
        config.images,
        focus=target_columns(contract, points[0]),
        seed=params.seed,
    )
    chosen = val.only(rows)
    target = _target(Scores(trained, contract), contract, graph, chosen, points)
    made_from = {
        "images": table_sha256(images),
        "model": [file_sha256(model / name) for name in ("model.onnx", "model.json")],
        "params": [params.finetune.model_dump(), config.model_dump(), params.evaluate.bootstrap, params.seed],
    }
    kept = Kept(checkpoint, made_from=made_from)
    outcomes = measure_attacks(target, config, seed=params.seed, kept=kept)
    curves = summarize(target, outcomes, draws=params.evaluate.bootstrap, seed=params.seed)
    checks = check_masking(target, outcomes)
    pictures = _pictures(target, contract, points[0], config, seed=params.seed, kept=kept)
    price = _hardening(trained, contract, images=images, val=val, rows=rows, params=params, kept=kept)
    _write(
        out,
        target,
        outcomes,
        curves=curves,
        checks=checks,
        price=price,
        pictures=pictures,
        points=points,
        config=config,
    )
    kept.forget()
    return curves


def _hardening(
    trained: TrainedTails,
    contract: Contract,
    *,
    images: Path,
    val: Images,
    rows: Rows,
    params: "Params",
    kept: Kept,
) -> pd.DataFrame:
    config = params.study.attacks

    def measure() -> list[dict[str, Any]]:
        most = config.hardening.images
        size = contract.input.size
        train = read_images(images, "train", size, most=most, balanced=False, seed=params.seed)
        return measure_hardening(trained, contract, train, val, rows=rows, params=params).to_dict("records")  # type: ignore[return-value]

    return pd.DataFrame(kept.get("hardening", measure) if config.hardening.epochs else [])


def _write(
    out: Path,
    target: Target,
    outcomes: Sequence[Outcome],
    *,
    curves: pd.DataFrame,
    checks: Sequence[Check],
    price: pd.DataFrame,
    pictures: Sequence[Picture],
    points: Sequence[OperatingPoint],
    config: AttacksConfig,
) -> None:
    images = target.images
    note = (
        f"{len(images.labels)} validation images of {images.lesion_count} lesions,"
        f" {images.pixels.shape[1]} pixels a side; 95% intervals by bootstrap over lesions."
    )
    figure = attack_curves(curves, points, note=note)
    sheet = to_png(picture_sheet(pictures, eps=config.linf[0])) if pictures else None
    verdict = verdict_on(curves, points[0], checks)
    page = render_attacks(
        curves, checks, price, to_png(figure), sheet, points=points, config=config, note=note, verdict=verdict
    )
    tables = {
        "attacked": _table(target, outcomes),
        "attacks": curves,
        "checks": pd.DataFrame([asdict(check) for check in checks]),
        "hardening": price,
    }
    write_tables(tables, out)
    if sheet:
        with atomic_path(out / "pictures.png") as temporary:
            temporary.write_bytes(sheet)
    alt = "Share of decisions that stay right, by how much an attacker may change"
    write_study(out, page, figure, Section("How small a change makes it err", verdict, alt))


def curves_of(target: Target, outcomes: Sequence[Outcome]) -> dict[tuple[str, Norm, str, float], Bools]:
    """Which images stay right, (N,), by decision, norm, attack and eps; eps 0 is without any.

    `strongest` is the worst that an attack of at most that size did, whatever it was aimed at.
    """
    found: dict[tuple[str, Norm, str, float], Bools] = {}
    for decision in target.decisions.values():
        for norm in _NORMS:
            own = [
                one for one in outcomes if one.trial.norm == norm and one.trial.track in {*_ATTACKS, "noise"}
            ]
            for name, behind in _curves(own, decision.name, norm).items():
                found[decision.name, norm, name, 0.0] = still_right(decision, target.clean, [])
                for eps in sorted({one.trial.eps for one in own}):
                    # those that were run on all images are shown as they are
                    least = eps if name in {*FULL, "noise"} else 0.0
                    used = [one for one in behind if least <= one.trial.eps <= eps]
                    found[decision.name, norm, name, eps] = still_right(decision, target.clean, used)
    return found


def _curves(outcomes: Sequence[Outcome], decision: str, norm: Norm) -> dict[str, list[Outcome]]:
    """What stands behind each curve of a decision."""
    found = {"strongest": [one for one in outcomes if one.trial.track in _ATTACKS]}
    if norm == "patch":
        found["noise"] = [one for one in outcomes if one.trial.track == "noise"]
    elif decision == NAMED:
        for name in (*FULL, *(["square"] if norm == "linf" else [])):
            own = [one for one in outcomes if (one.trial.attack, one.trial.decision) == (name, NAMED)]
            found[name] = own
    return found


def summarize(target: Target, outcomes: Sequence[Outcome], *, draws: int, seed: int) -> pd.DataFrame:
    """The share of decisions that stay right, with a 95% interval by bootstrap over lesions.

    Returns:
        A row a decision (`NAMED`: accuracy; an operating point: sensitivity), norm, attack and eps:
        images, value, low, high.
    """
    right = curves_of(target, outcomes)
    metrics = {key: share(one, target.decisions[key[0]].right >= 0) for key, one in right.items()}
    groups = target.images.table["group_id"].to_numpy(object)
    sampled = resample(metrics, groups, draws=draws, rng=np.random.default_rng(seed))
    estimates: dict[Any, Estimate] = {key: estimate(one) for key, one in sampled.items()}
    return pd.DataFrame(
        {
            "decision": decision,
            "norm": norm,
            "attack": name,
            "eps": eps,
            "images": int((target.decisions[decision].right >= 0).sum()),
            "value": found.value,
            "low": found.low,
            "high": found.high,
        }
        for (decision, norm, name, eps), found in estimates.items()
    )


def check_masking(target: Target, outcomes: Sequence[Outcome]) -> list[Check]:
    """Are the attacks blunt? Each sign of it, on the class that is named."""
    right = curves_of(target, outcomes)
    clean = right[NAMED, "linf", "strongest", 0.0]

    def of(track: Track) -> list[Outcome]:
        return [one for one in outcomes if one.trial.track == track]

    def curve(norm: str, name: str) -> dict[float, Bools]:
        return {key[3]: one[clean] for key, one in right.items() if key[:3] == (NAMED, norm, name)}

    decision = target.decisions[NAMED]
    (smallest, *_) = [eps for eps in curve("l2", "pgd") if eps]
    usual = next(one for one in of("white") if (one.trial.attack, one.trial.norm) == ("pgd", "l2"))
    by_steps = {
        float(one.trial.steps): still_right(decision, target.clean, [one])[clean]
        for one in sorted([*of("steps"), usual], key=lambda one: one.trial.steps)
    }
    huge = still_right(decision, target.clean, of("huge"))[clean]
    pairs = {
        norm: [(eps, curve(norm, "fgsm")[eps], one) for eps, one in curve(norm, "pgd").items() if eps]
        for norm in ("linf", "l2")
    }
    white = [one for one in of("white") if one.trial.norm == "linf"]
    black = [
        (eps, one, still_right(decision, target.clean, [two for two in white if two.trial.eps <= eps])[clean])
        for eps, one in curve("linf", "square").items()
        if eps
    ]
    names = ("one step (FGSM)", "many steps (PGD)")
    return [
        more_is_never_less(
            f"More steps never help the model (PGD, L2, eps {smallest:g})", "{} steps", by_steps
        ),
        more_is_never_less("A larger eps never helps the model (PGD, L∞)", "{}/255", curve("linf", "pgd")),
        more_is_never_less("A larger eps never helps the model (PGD, L2)", "{}", curve("l2", "pgd")),
        weaker_does_not_win("One step does not beat many (L∞)", names, pairs["linf"], unit="{}/255"),
        weaker_does_not_win("One step does not beat many (L2)", names, pairs["l2"], unit="{}"),
        weaker_does_not_win(
            "Asking the graph does not beat its gradients (L∞)",
            ("the black-box attack (Square)", "the strongest white-box one"),
            black,
            unit="{}/255",
        ),
        nothing_stands("A change without bounds fells all", f"at {HUGE}/255 (PGD)", huge),
    ]


def _points(contract: Contract, names: Sequence[str]) -> list[OperatingPoint]:
    known = {point.name: point for point in contract.operating_points}
    if missing := [name for name in names if name not in known]:
        raise ConfigError(
            f"study.attacks.points: the model has no operating point {', '.join(missing)};"
            f" it has {', '.join(known)}"
        )
    return [known[name] for name in names]


def _target(
    scores: Scores, contract: Contract, graph: Graph, images: Images, points: Sequence[OperatingPoint]
) -> Target:
    return Target(
        graph,
        images,
        judge(graph, images.pixels),
        {NAMED: naming(contract, images.labels)}
        | {point.name: flagging(contract, images.labels, point) for point in points},
        {NAMED: Naming(scores, contract)}
        | {point.name: Flagging(scores, contract, point) for point in points},
        {NAMED: len(contract.classes)} | {point.name: 2 for point in points},
    )


def _table(target: Target, outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row an attacked image and trial: how large the change was, and what the graph then said."""
    ids, classes = target.images.table["image_id"].to_numpy(object), target.images.classes
    return pd.DataFrame(
        {"image_id": ids[row], "label": classes[target.images.labels[row]]}
        | {"track": one.trial.track, "decision": one.trial.decision, "attack": one.trial.attack}
        | {"norm": one.trial.norm, "eps": one.trial.eps, "steps": one.trial.steps, "linf": linf, "l2": l2}
        | dict(zip(classes, probabilities, strict=True))
        for one in outcomes
        for row, probabilities, linf, l2 in zip(one.rows, one.probabilities, one.linf, one.l2, strict=True)
    )


def _pictures(
    target: Target, contract: Contract, point: OperatingPoint, config: AttacksConfig, *, seed: int, kept: Kept
) -> list[Picture]:
    """A few positives that the model finds, and what they look like when it no longer does.

    They are attacked anew: the study keeps numbers alone of the others.
    """
    decision = target.decisions[point.name]
    found = np.flatnonzero(still_right(decision, target.clean, []))
    lesions = target.images.lesions[found]
    rows = found[np.sort(np.unique(lesions.astype(str), return_index=True)[1])][:_SHOWN].astype(np.int64)
    if not len(rows):
        return []
    trials = (
        Trial("white", point.name, "apgd_ce", "linf", config.linf[0], config.steps),
        Trial("white", point.name, "pgd", "patch", config.patch[-1], 2 * config.steps),
    )
    images = target.images.pixels[rows]

    def measure() -> list[list[str]]:
        changed = (change(one, images, rows, target, queries=0, seed=seed) for one in trials)
        return [[_encode(image) for image in one] for one in changed]

    small, patched = (np.stack([_decode(one) for one in made]) for made in kept.get("pictures", measure))
    said = [_said(contract, point, judge(target.graph, pixels)) for pixels in (images, small, patched)]
    return [Picture(*one) for one in zip(images, small, patched, *said, strict=True)]


def _said(contract: Contract, point: OperatingPoint, probabilities: np.ndarray) -> list[str]:
    columns, named = target_columns(contract, point), contract.named(probabilities)
    return [
        f"{point.target} {one[columns].sum():.0%}, named {contract.classes[name].name}"
        for one, name in zip(probabilities, named, strict=True)
    ]


def _encode(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _decode(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
