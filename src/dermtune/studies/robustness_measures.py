"""What artefacts and movements cost, with intervals over lesions: tables out of what classifiers said.

All differences are paired: every condition and every classifier is measured on the same draws of lesions.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.metrics import Metric, Predictions, Sampled, auroc, estimate, macro, recall, resample, share

Condition: TypeAlias = tuple[str, float]
"""What was done, and how severely or how far."""
Said: TypeAlias = Mapping[str, Mapping[Condition, Predictions]]
"""By classifier and condition, of the same images."""
AS_IT_IS: Final[Condition] = ("as it is", 0.0)
BALANCED: Final = "balanced accuracy"
AUROC: Final = "AUROC"
_ALL: Final = "all"
_Key: TypeAlias = tuple[str, Condition, str, str]  # classifier, condition, metric, class
_Found: TypeAlias = dict[_Key, Sampled]


def measure_robustness(
    said: Said, movements: Collection[str], *, draws: int, seed: int
) -> dict[str, pd.DataFrame]:
    """All that is measured.

    Args:
        said: by `shipped`, `plain` (without augmentation), `probe`, and `first` where it is not `shipped`.
        movements: names among the conditions that are no artefacts; each has a level 0.
        draws: of lesions.
        seed: of the draws.

    Returns:
        `severities`: a row a classifier, artefact, severity (0: as it is) and metric.
        `errors`: a row an artefact: corruption error; `mean`, `relative mean`.
        `damage`: a row a classifier, artefact and class: what the mean over severities lost.
        `consistency`: a row a classifier, movement and level: is the same class named?
        `augmentation`: a row an artefact or movement: with less without augmentation.
        All have `value`, `low` and `high`, empty where undefined.
    """
    artefacts = list(
        dict.fromkeys(name for name, _ in said["shipped"] if name not in {*movements, AS_IT_IS[0]})
    )
    found = _measure(said, artefacts, draws=draws, seed=seed)
    moved = _measure_movements(said, movements, draws=draws, seed=seed)
    levels = _levels(said["shipped"])
    with_ = "first" if "first" in said else "shipped"
    models = [name for name in said if name != "first"]
    classes = _ordered(said["shipped"][AS_IT_IS])
    return {
        "severities": _severities(found, models, artefacts, levels),
        "errors": _errors(found, artefacts, levels),
        "damage": _damage(found, models, artefacts, levels, classes),
        "consistency": _consistency(moved, models),
        "augmentation": _augmentation(found, moved, artefacts, levels, with_),
    }


def _measure(said: Said, artefacts: Sequence[str], *, draws: int, seed: int) -> _Found:
    """Sensitivity and AUROC of each class, and their means, in each condition, on the same draws."""
    metrics: dict[_Key, Metric] = {}
    for model, by_condition in said.items():
        for condition, one in by_condition.items():
            if condition != AS_IT_IS and condition[0] not in artefacts:
                continue
            for column, name in enumerate(one.classes):
                metrics[model, condition, "sensitivity", name] = recall(one.named, one.labels, column)
                metrics[model, condition, AUROC, name] = auroc(*one.of(name))
    first = said["shipped"][AS_IT_IS]
    found = resample(metrics, first.drawn, draws=draws, rng=np.random.default_rng(seed))
    for model, condition in {(model, condition): None for model, condition, _, _ in metrics}:
        for metric, mean in (("sensitivity", BALANCED), (AUROC, AUROC)):
            own = [found[model, condition, metric, name] for name in first.classes]
            found[model, condition, mean, _ALL] = macro(own)
    return found


def _measure_movements(
    said: Said, movements: Collection[str], *, draws: int, seed: int
) -> dict[tuple[str, Condition, str], Sampled]:
    """Is the class that is named the same as before, and by how much does that class's probability change?

    Source: Azulay and Weiss 2019: the probability of a top-1 change, and the mean absolute change.
    """
    metrics: dict[tuple[str, Condition, str], Metric] = {}
    for model, by_condition in said.items():
        for (name, level), after in by_condition.items():
            if name not in movements or level == 0:
                continue
            before = by_condition[name, 0.0]
            everything, rows = np.ones(len(before.labels), bool), np.arange(len(before.labels))
            moved = np.abs(before.probabilities - after.probabilities)[rows, before.named]
            metrics[model, (name, level), "same class"] = share(before.named == after.named, everything)
            metrics[model, (name, level), "change"] = share(moved, everything)
    drawn = said["shipped"][AS_IT_IS].drawn
    return resample(metrics, drawn, draws=draws, rng=np.random.default_rng(seed))


def combine(work: Callable[[NDArray[np.float64]], NDArray[np.float64]], parts: Sequence[Sampled]) -> Sampled:
    """Some function of metrics on the same draws: of their values, and draw by draw.

    Args:
        work: from (parts, draws) to (draws,).
        parts: of the same draws; where one is undefined, so is what is made of it.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = work(np.stack([part.draws for part in parts]))
        values = [part.value for part in parts if part.value is not None]
        value = float(work(np.array(values)[:, None])[0]) if len(values) == len(parts) else np.nan
    lesions = min((part.lesions for part in parts if part.lesions is not None), default=None)
    draws = np.where(np.isfinite(draws), draws, np.nan)
    return Sampled(value if np.isfinite(value) else None, draws, classes=parts[0].classes, lesions=lesions)


def corruption_error(ours: Sequence[Sampled], baseline: Sequence[Sampled]) -> Sampled:
    """Errors (one less balanced accuracy) of a classifier over all severities, by those of the baseline.

    Source: Hendrycks and Dietterich 2019, section 4; theirs is the error of the top class.
    """
    half = len(ours)
    return combine(lambda x: (1 - x[:half]).sum(0) / (1 - x[half:]).sum(0), [*ours, *baseline])


def _errors(found: _Found, artefacts: Sequence[str], levels: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    def of(model: str, artefact: str) -> list[Sampled]:
        return [found[model, (artefact, level), BALANCED, _ALL] for level in levels[artefact]]

    errors = {name: corruption_error(of("shipped", name), of("probe", name)) for name in artefacts}
    everything = {
        model: [one for name in artefacts for one in of(model, name)] for model in ("shipped", "probe")
    }
    clean = [found[model, AS_IT_IS, BALANCED, _ALL] for model in ("shipped", "probe")]
    count = len(everything["shipped"])
    # one quotient of sums: of a single artefact that costs the baseline nothing, there is none
    relative = combine(
        lambda x: (count * x[0] - x[2 : 2 + count].sum(0)) / (count * x[1] - x[2 + count :].sum(0)),
        [*clean, *everything["shipped"], *everything["probe"]],
    )
    errors["mean"] = combine(_mean, [errors[name] for name in artefacts])
    errors["relative mean"] = relative
    return pd.DataFrame({"artefact": name, **_ends(one)} for name, one in errors.items())


def _severities(
    found: _Found, models: Sequence[str], artefacts: Sequence[str], levels: Mapping[str, Sequence[float]]
) -> pd.DataFrame:
    rows = []
    for model in models:
        for condition in (AS_IT_IS, *((name, level) for name in artefacts for level in levels[name])):
            rows += [
                {"classifier": model, "artefact": condition[0], "severity": int(condition[1])}
                | {"metric": metric, "class": name, **_ends(one)}
                for (who, where, metric, name), one in found.items()
                if (who, where) == (model, condition)
            ]
    return pd.DataFrame(rows)


def _damage(
    found: _Found,
    models: Sequence[str],
    artefacts: Sequence[str],
    levels: Mapping[str, Sequence[float]],
    classes: Sequence[str],
) -> pd.DataFrame:
    """Mean over severities less what was before: negative where something is lost."""
    asked = [(BALANCED, _ALL), (AUROC, _ALL)]
    asked += [(metric, name) for metric in ("sensitivity", AUROC) for name in classes]
    rows = []
    for model in models:
        for artefact in artefacts:
            for metric, name in asked:
                before = found[model, AS_IT_IS, metric, name]
                after = [found[model, (artefact, level), metric, name] for level in levels[artefact]]
                lost = combine(lambda x: x[1:].mean(0) - x[0], [before, *after])
                rows.append(
                    {"classifier": model, "artefact": artefact, "metric": metric, "class": name}
                    | {"before": before.value, "after": _plus(before.value, lost.value), **_ends(lost)}
                )
    return pd.DataFrame(rows)


def _consistency(moved: Mapping[tuple[str, Condition, str], Sampled], models: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {"classifier": model, "movement": name, "level": level, "measure": measure, **_ends(one)}
        for (model, (name, level), measure), one in moved.items()
        if model in models
    )


def _augmentation(
    found: _Found,
    moved: Mapping[tuple[str, Condition, str], Sampled],
    artefacts: Sequence[str],
    levels: Mapping[str, Sequence[float]],
    with_: str,
) -> pd.DataFrame:
    """Mean over severities, or over distances, with augmentation and without."""
    pairs: dict[tuple[str, str], list[list[Sampled]]] = {}
    for metric in (BALANCED, AUROC):
        by_artefact = {
            AS_IT_IS[0]: [AS_IT_IS],
            **{name: [(name, level) for level in levels[name]] for name in artefacts},
        }
        by_artefact["all artefacts"] = [one for name in artefacts for one in by_artefact[name]]
        for name, conditions in by_artefact.items():
            pairs[metric, name] = [
                [found[who, one, metric, _ALL] for one in conditions] for who in (with_, "plain")
            ]
    for movement in dict.fromkeys(name for _, (name, _), _ in moved):
        pairs["same class", movement] = [
            [
                one
                for (who, (name, _), measure), one in moved.items()
                if (who, name, measure) == (model, movement, "same class")
            ]
            for model in (with_, "plain")
        ]
    rows = []
    for (metric, name), (own, other) in pairs.items():
        means = [combine(_mean, part) for part in (own, other)]
        gain = combine(lambda x: x[0] - x[1], means)
        rows.append(
            {
                "condition": name,
                "metric": metric,
                "with": means[0].value,
                "without": means[1].value,
                **_ends(gain),
            }
        )
    return pd.DataFrame(rows)


def _levels(by_condition: Mapping[Condition, Any]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name, level in by_condition:
        found.setdefault(name, []).append(level)
    return found


def _ordered(one: Predictions) -> list[str]:
    """Classes, melanoma first, then what else is malignant: lives hang on them."""
    order = sorted(
        zip(one.classes, one.malignant, strict=True),
        key=lambda pair: (pair[0] != "mel", not pair[1], pair[0]),
    )
    return [name for name, _ in order]


def _ends(one: Sampled) -> dict[str, float | None]:
    found = estimate(one)
    return {"value": found.value, "low": found.low, "high": found.high}


def _mean(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = parts.mean(0)
    return mean


def _plus(value: float | None, change: float | None) -> float | None:
    return None if value is None or change is None else value + change
