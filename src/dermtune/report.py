"""The evaluation for people: figures, the headline numbers, and one HTML file that needs nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dermtune import figures
from dermtune.abstention import flags, measure_flags, risk_coverage
from dermtune.calibration import softmax
from dermtune.conformal import measure_sets
from dermtune.figures import Curve, confusion_matrix, forest, pr_curves, reliability, roc_curves
from dermtune.inference import Looked, Probed
from dermtune.metrics import (
    Bools,
    Predictions,
    Sampled,
    brier,
    classwise_calibration_error,
    estimate,
    expected_calibration_error,
    measure,
    negative_log_likelihood,
    pr_table,
    predictions_of,
    reliability_table,
    resample,
    roc_table,
    sensitivity,
    share,
    specificity,
    top_label,
)
from dermtune.page import render_page
from dermtune.shortcuts import measure_shortcuts
from dermtune.subgroups import ATTRIBUTES, LEAST_LESIONS, gaps, groups_of, measure_subgroups, worst_group
from dermtune_bundle.decode import resize
from dermtune_bundle.manifest import MALIGNANT, NOTICE, Contract, Diagnosis, Limits, OperatingPoint, flatten
from dermtune_bundle.pictures import overlay, to_jpeg

_SYNTHETIC = "synthetic"
_GROUP_METRICS = ("sensitivity", "specificity", "auroc")
_MISSES, _ALARMS, _THUMBNAIL = 100, 12, 160  # images, images, pixels


@dataclass(frozen=True)
class Miss:
    """An image of a target class that the model calls something else."""

    image_id: str
    score: float
    """The target's probability, below the threshold."""
    predicted: str
    """Title of the class that the model names."""
    jpeg: bytes
    overlay: bytes
    """The same, brighter where it speaks for the class that the model names; JPEG."""


@dataclass(frozen=True)
class Evaluation:
    """All that the figures and the report are made from."""

    contract: Contract
    predictions: Predictions
    measured: Mapping[tuple[str, ...], Sampled]
    roc: pd.DataFrame
    pr: pd.DataFrame
    reliability: Mapping[str, pd.DataFrame]
    """`top label` and each operating point's target: a table as of `metrics.reliability_table`."""
    sets: pd.DataFrame
    """Coverage and size of the prediction sets, as of `conformal.measure_sets`."""
    subgroups: pd.DataFrame
    """As of `subgroups.measure_subgroups`, at `subgroup_point`."""
    subgroup_point: OperatingPoint | None
    flagged: pd.DataFrame
    """As of `abstention.measure_flags`."""
    selective: pd.DataFrame
    """As of `abstention.risk_coverage`."""
    before: pd.DataFrame
    """Reliability of the top label without calibration."""
    uncalibrated: Mapping[str, Sampled]
    """`ece, ece_classwise, nll, brier` without calibration."""
    shortcuts: pd.DataFrame
    """As of `shortcuts.measure_shortcuts`; the first row is the images as they are."""
    looks: Mapping[str, Sampled]
    """`inside`: mean share of the most probable class's activation that lies in the lesion; `covered`: of the
    image that the lesion covers; of the images in which one is found."""
    outlined: tuple[int, int, int]
    """Of the images: where the source outlines the lesion, where a program does, and where none is found."""
    answered: Mapping[str, Sampled]
    """`sensitivity` and `specificity` at `subgroup_point` where the model does not abstain."""
    tones: Mapping[str, int]
    """Test images by skin tone."""
    is_external: bool
    """Are these images of another source than those that the model learned from?"""
    draws: int

    def tables(self) -> dict[str, pd.DataFrame]:
        """What the figures show, as tables by name."""
        names = np.array(self.predictions.classes)
        reliability = [table.assign(**{"class": name}) for name, table in self.reliability.items()]
        return {
            "confusion": pd.DataFrame(
                {"actual": names[self.predictions.labels], "predicted": names[self.predictions.named]}
            ),
            "roc": self.roc,
            "pr": self.pr,
            "reliability": pd.concat(reliability, ignore_index=True),
            "prediction_sets": self.sets,
            "subgroups": self.subgroups,
            "abstention": self.flagged,
            "risk_coverage": self.selective,
            "shortcuts": self.shortcuts,
        }

    def note(self) -> str:
        """What n is, and how the intervals were made; goes below every figure."""
        images, lesions = len(self.predictions.labels), len(np.unique(self.predictions.lesions))
        where = "another source" if self.is_external else "test split"
        return (
            f"n = {images:,} images of {lesions:,} lesions ({where}). "
            f"Intervals: 95%, {self.draws:,} bootstrap draws of lesions."
        )


def evaluation_of(
    contract: Contract,
    test: pd.DataFrame,
    seen: Looked,
    probed: Probed,
    *,
    is_external: bool,
    draws: int,
    rng: np.random.Generator,
    prevalence: Mapping[str, float],
) -> Evaluation:
    """Measure all that the report shows.

    Args:
        contract: what the graph's numbers mean, and the operating points.
        test: rows of the image table, in the order of `seen`.
        seen: what the graph says of them.
        probed: what they show, and what it says once a part of them is painted over.
        is_external: are they of another source than those that the model learned from?
        draws: how many draws of lesions stand behind each interval.
        rng: where they come from.
        prevalence: as `metrics.measure` takes it.
    """
    probabilities = seen.probabilities
    predictions = predictions_of(contract, probabilities, test)
    labels = predictions.labels
    shown = {"top label": top_label(probabilities, labels)}
    shown |= {point.target: predictions.of(point.target) for point in contract.operating_points}
    bootstrap: dict[str, Any] = {"draws": draws, "rng": rng}
    raw = softmax(seen.logits + np.array(contract.calibration.prior_shift))
    errors = {
        "ece": expected_calibration_error(raw, labels),
        "ece_classwise": classwise_calibration_error(raw, labels),
        "nll": negative_log_likelihood(raw, labels),
        "brier": brier(raw, labels),
    }
    point = _most_sensitive(contract.operating_points)
    groups = groups_of(pd.concat([test, probed.appearance], axis=1))
    found = (probed.appearance["lesion_share"] > 0).to_numpy(bool)
    within = predictions.only(found)
    variants = {"as they are": within} | {
        name: replace(within, probabilities=painted[found], named=contract.named(painted[found]))
        for name, painted in probed.probabilities.items()
    }
    covered = probed.appearance["lesion_share"].to_numpy(float)
    looks = {
        "inside": share(np.nan_to_num(probed.inside), found & ~np.isnan(probed.inside)),
        "covered": share(covered, found),
    }
    abstains = flags(contract.limits, seen)
    return Evaluation(
        contract=contract,
        predictions=predictions,
        measured=measure(predictions, contract.operating_points, prevalence=prevalence, **bootstrap),
        roc=roc_table(predictions),
        pr=pr_table(predictions),
        reliability={
            name: reliability_table(*pair, predictions.drawn, **bootstrap) for name, pair in shown.items()
        },
        sets=measure_sets(predictions, contract.in_set(probabilities), **bootstrap),
        subgroups=measure_subgroups(predictions, groups, point, **bootstrap) if point else pd.DataFrame(),
        subgroup_point=point,
        flagged=measure_flags(abstains, predictions, **bootstrap),
        selective=risk_coverage(predictions, **bootstrap),
        before=reliability_table(*top_label(raw, labels), predictions.drawn, **bootstrap),
        uncalibrated=resample(errors, predictions.drawn, **bootstrap),
        shortcuts=measure_shortcuts(variants, **bootstrap),
        looks=resample(looks, predictions.drawn, **bootstrap),
        outlined=(
            int((probed.outlined & found).sum()),
            int((~probed.outlined & found).sum()),
            int((~found).sum()),
        ),
        answered=_answered(predictions, ~np.any(abstains.to_numpy(bool), axis=1), point, **bootstrap),
        tones={str(tone): int(n) for tone, n in groups["skin_tone"].value_counts().items()},
        is_external=is_external,
        draws=draws,
    )


def _answered(
    predictions: Predictions,
    kept: Bools,
    point: OperatingPoint | None,
    *,
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Sampled]:
    if point is None or not kept.any():
        return {}
    part = predictions.only(kept)
    rates = {
        "sensitivity": sensitivity(*part.of(point.target), point.threshold),
        "specificity": specificity(*part.of(point.target), point.threshold),
    }
    return resample(rates, part.drawn, draws=draws, rng=rng)


def further_metrics(evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json holds of prediction sets, abstention and subgroups: each metric with its interval."""

    def numbers(row: Mapping[str, Any], name: str) -> dict[str, Any]:
        found = {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}
        rounded = {key: None if pd.isna(one) else round(float(one), 6) for key, one in found.items()}
        return rounded if rounded["value"] is not None else {**rounded, "reason": "too few lesions to judge"}

    found: dict[str, Any] = {
        "uncalibrated": {name: _metric(one) for name, one in evaluation.uncalibrated.items()},
        "prediction_sets": {
            row["class"]: {name: numbers(row, name) for name in ("coverage", "mean_size")}
            for row in _records(evaluation.sets)
        },
        "shortcuts": {
            row["variant"]: {name: numbers(row, name) for name in ("auroc", "balanced_accuracy")}
            for row in _records(evaluation.shortcuts)
        },
        "abstention": {row["reason"]: numbers(row, "share") for row in _records(evaluation.flagged)},
        "answered": {name: _metric(one) for name, one in evaluation.answered.items()},
        "looks": {name: _metric(one) for name, one in evaluation.looks.items()},
        "is_external": evaluation.is_external,
    }
    if evaluation.subgroup_point:
        groups: dict[str, Any] = {}
        for row in _records(evaluation.subgroups):
            counts = {name: row[name] for name in ("images", "positives", "negatives")}
            of_attribute = groups.setdefault(row["attribute"], {})
            of_attribute[row["group"]] = counts | {name: numbers(row, name) for name in _GROUP_METRICS}
        worst = worst_group(evaluation.subgroups)
        found["subgroups"] = {
            "operating_point": evaluation.subgroup_point.name,
            "worst": worst
            and {name: worst[name] for name in ("attribute", "group", "positives")}
            | {"sensitivity": numbers(worst, "sensitivity")},
            "groups": groups,
        }
    return found


def most_sensitive_of_each_target(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """For each target its lowest threshold: what that misses, the others miss as well."""
    targets = dict.fromkeys(point.target for point in points)
    return [
        min((one for one in points if one.target == target), key=lambda one: one.threshold)
        for target in targets
    ]


def _most_sensitive(points: Sequence[OperatingPoint]) -> OperatingPoint | None:
    """The decision whose misses cost most: that on malignant lesions, and of those the most sensitive."""
    return max(points, key=lambda point: (point.target == MALIGNANT, point.sensitivity or 0), default=None)


def headline(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The metrics to look at first, of what metrics.json holds: label and `value [low, high]`."""
    return [(label, with_interval(metric)) for label, metric in headline_metrics(metrics)]


def headline_metrics(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The metrics to look at first, of what metrics.json holds: label and metric."""
    rows = [("AUROC, macro", metrics["auroc"]["macro"])]
    if MALIGNANT in metrics["auroc"]:
        rows.append(("AUROC, malignant", metrics["auroc"][MALIGNANT]))
    rows += [
        ("Balanced accuracy", metrics["balanced_accuracy"]),
        ("Average precision, macro", metrics["average_precision"]["macro"]),
    ]
    for name, threshold in metrics["threshold"].items():
        rows.append((f"Sensitivity, {name} ≥ {threshold:.3f}", metrics["sensitivity"][name]))
        rows.append((f"Specificity, {name} ≥ {threshold:.3f}", metrics["specificity"][name]))
    rows += [
        ("Accuracy", metrics["accuracy"]),
        ("Brier score (0 best, 2 worst)", metrics["brier"]),
        ("Calibration error", metrics["ece"]),
    ]
    return rows


def with_interval(metric: Mapping[str, Any]) -> str:
    """A metric of metrics.json as `0.912 [0.880, 0.941]`."""
    if metric["value"] is None:
        return "undefined"
    if metric["low"] is None:
        return f"{metric['value']:.3f} (no interval)"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def draw_figures(evaluation: Evaluation) -> dict[str, Figure]:
    """Confusion matrix, ROC, precision-recall and reliability, by file name without suffix."""
    predictions, note = evaluation.predictions, evaluation.note()
    classes = evaluation.contract.classes
    size = len(classes)
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (predictions.labels, predictions.named), 1)
    recalls = [_text(evaluation.measured["recall", known.name]) for known in classes]
    titles = {"top label": "Most probable class"} | _target_titles(evaluation.contract)
    panels: list[tuple[Any, ...]] = [
        (titles[name], "probability given", table) for name, table in evaluation.reliability.items()
    ]
    panels[0] = (*panels[0], evaluation.before)
    return {
        "confusion": confusion_matrix(counts, [known.title for known in classes], recalls, note=note),
        "roc": roc_curves([c for known in classes if (c := _roc(evaluation, known))], note=note),
        "pr": pr_curves([c for known in classes if (c := _pr(evaluation, known))], note=note),
        "reliability": reliability(panels, note=note),
        "risk_coverage": figures.risk_coverage(evaluation.selective, note=note),
    } | (
        {}
        if evaluation.subgroups.empty
        else {"subgroups": forest(evaluation.subgroups, metrics=_GROUP_METRICS, titles=ATTRIBUTES, note=note)}
    )


def most_confident_misses(
    evaluation: Evaluation,
    point: OperatingPoint,
    image_ids: Sequence[str],
    look: Callable[[int], tuple[NDArray[np.uint8], NDArray[np.floating]]],
) -> list[Miss]:
    """Images of the point's target that stay below its threshold, lowest first, at most a hundred.

    Args:
        evaluation: N predictions.
        point: the target and its threshold.
        image_ids: N of them.
        look: from a row to its image, uint8 (H, W, 3), and its activation maps (K, h, w).
    """
    scores, positive = evaluation.predictions.of(point.target)
    missed = np.flatnonzero(positive & (scores < point.threshold))
    lowest_first = missed[np.argsort(scores[missed], kind="stable")][:_MISSES]
    return [_miss(evaluation, int(row), image_ids[row], float(scores[row]), look) for row in lowest_first]


def most_confident_alarms(
    evaluation: Evaluation,
    point: OperatingPoint,
    image_ids: Sequence[str],
    look: Callable[[int], tuple[NDArray[np.uint8], NDArray[np.floating]]],
) -> list[Miss]:
    """The other images that score highest above the point's threshold; as `most_confident_misses`."""
    scores, positive = evaluation.predictions.of(point.target)
    alarms = np.flatnonzero(~positive & (scores >= point.threshold))
    highest_first = alarms[np.argsort(-scores[alarms], kind="stable")][:_ALARMS]
    return [_miss(evaluation, int(row), image_ids[row], float(scores[row]), look) for row in highest_first]


def _miss(
    evaluation: Evaluation,
    row: int,
    image_id: str,
    score: float,
    look: Callable[[int], tuple[NDArray[np.uint8], NDArray[np.floating]]],
) -> Miss:
    image, activation = look(row)
    named = int(evaluation.predictions.named[row])
    small = resize(image, _THUMBNAIL)
    overlaid = overlay(small, activation[named])
    return Miss(image_id, score, evaluation.contract.classes[named].title, to_jpeg(small), to_jpeg(overlaid))


def render(
    evaluation: Evaluation,
    metrics: Mapping[str, Any],
    table: pd.DataFrame,
    *,
    pngs: Mapping[str, bytes],
    misses: Mapping[str, Sequence[Miss]],
    alarms: Mapping[str, Sequence[Miss]],
    quarantined: pd.DataFrame,
    ingested: Mapping[str, Any],
    alike: pd.DataFrame,
) -> str:
    """Write the report as one self-contained HTML page: no script, nothing fetched.

    Args:
        evaluation: the predictions and what was measured on them.
        metrics: what metrics.json holds.
        table: the image table, all splits.
        quarantined: what was set aside, with a `reason` each.
        alike: pairs of a test image and another that look alike, as of `leakage.look_alikes`.
        ingested: `copies` that ingest kept together, and which columns tell the diagnosis (`told`).
        pngs: the figures by name; those that the page does not know are left out.
        misses: by operating point, the most confident ones first …
        alarms: … and the same of others that were taken for its target.
    """
    counts = pd.crosstab(table["label"], table["split"]).reindex(
        index=evaluation.predictions.classes, columns=["train", "val", "test"], fill_value=0
    )
    test = table[table["split"] == "test"]
    values = {
        "notice": NOTICE,
        "synthetic": bool((test["source"] == _SYNTHETIC).any()),
        "sources": sorted({str(source) for source in test["source"].dropna()}),
        "contract": evaluation.contract,
        "targets": _target_titles(evaluation.contract),
        "metrics": metrics,
        "headline": headline(metrics),
        "counts": counts.to_dict("index"),
        "totals": counts.sum().to_dict(),
        "lesions": table.groupby("split")["lesion_id"].nunique().to_dict(),
        "lesions_of": test.groupby("label")["lesion_id"].nunique().to_dict(),
        "least": LEAST_LESIONS,
        "is_external": evaluation.is_external,
        "tones": evaluation.tones,
        "outlined": evaluation.outlined,
        "answered": {name: _metric(one) for name, one in evaluation.answered.items()},
        "alarms": alarms,
        "copies": ingested.get("copies", 0),
        "told": ingested.get("told", []),
        "alike": _records(alike),
        "draws": evaluation.draws,
        "note": evaluation.note(),
        "pngs": pngs,
        "misses": misses,
        "attributes": ATTRIBUTES,
        "answer": _answer(evaluation, metrics),
        "point": evaluation.subgroup_point,
        "subgroups": _records(evaluation.subgroups),
        "gaps": _records(gaps(evaluation.subgroups)) if len(evaluation.subgroups) else [],
        "worst": worst_group(evaluation.subgroups) if len(evaluation.subgroups) else None,
        "sets": _records(evaluation.sets),
        "flagged": _records(evaluation.flagged),
        "any_flag": Limits.ANY,
        "uncalibrated": {name: _metric(one) for name, one in evaluation.uncalibrated.items()},
        "quarantined": quarantined["reason"].value_counts().to_dict(),
        "people": _people(table),
        "shortcuts": _records(evaluation.shortcuts),
        "looks": {name: _metric(one) for name, one in evaluation.looks.items()},
    }
    return render_page("report.html", values, interval=with_interval, percent=_percent, flatten=flatten)


def _people(table: pd.DataFrame) -> dict[str, Any]:
    """Images by attribute, group and split, of the attributes that the image table holds."""
    groups = groups_of(table.assign(ita=np.nan, lesion_share=np.nan))
    shown = [
        name for name in ATTRIBUTES if not name.startswith(("skin", "lesion"))
    ]  # estimated on test alone
    return {
        name: pd.crosstab(groups[name], table["split"])
        .reindex(columns=["train", "val", "test"], fill_value=0)
        .to_dict("index")
        for name in shown
    }


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows, with None where a value is missing."""
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def _answer(evaluation: Evaluation, metrics: Mapping[str, Any]) -> str:
    """The report in two sentences."""
    point = evaluation.subgroup_point
    if point is None:
        return "No threshold was chosen; the model gives probabilities only."
    what = "images of malignant lesions" if point.target == MALIGNANT else f"images of class {point.target}"
    found, spared = (metrics[name][point.name] for name in ("sensitivity", "specificity"))
    return (
        f"At its most careful threshold ({point.name}), the model finds {_percent(found)} of the {what} and"
        f" leaves {_percent(spared)} of the others alone."
    )


def _percent(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return "an unknown share"
    span = "" if metric["low"] is None else f" (95% interval {metric['low']:.0%} to {metric['high']:.0%})"
    return f"{metric['value']:.0%}{span}"


def _target_titles(contract: Contract) -> dict[str, str]:
    """What the targets of operating points are called, for people."""
    return {known.name: known.title for known in contract.classes} | {MALIGNANT: "Malignant, of any kind"}


def _roc(evaluation: Evaluation, known: Diagnosis) -> Curve | None:
    rows = evaluation.roc[evaluation.roc["class"] == known.name]
    if rows.empty:
        return None
    scores, positive = evaluation.predictions.of(known.name)
    mark = None
    if (threshold := _threshold(evaluation, known)) is not None:
        flagged = scores >= threshold
        mark = (float(flagged[~positive].mean()), float(flagged[positive].mean()))
    caption = _caption(evaluation, "auroc", known)
    return Curve(known.title, caption, rows["fpr"].to_numpy(), rows["tpr"].to_numpy(), mark=mark)


def _pr(evaluation: Evaluation, known: Diagnosis) -> Curve | None:
    rows = evaluation.pr[evaluation.pr["class"] == known.name]
    if rows.empty:
        return None
    scores, positive = evaluation.predictions.of(known.name)
    mark = None
    if (threshold := _threshold(evaluation, known)) is not None and (flagged := scores >= threshold).any():
        mark = (float(flagged[positive].mean()), float(positive[flagged].mean()))
    return Curve(
        known.title,
        _caption(evaluation, "average_precision", known),
        rows["recall"].to_numpy(),
        rows["precision"].to_numpy(),
        chance=float(positive.mean()),
        mark=mark,
    )


def _threshold(evaluation: Evaluation, known: Diagnosis) -> float | None:
    points = evaluation.contract.operating_points
    return next((point.threshold for point in points if point.target == known.name), None)


def _caption(evaluation: Evaluation, metric: str, known: Diagnosis) -> str:
    positive = evaluation.predictions.of(known.name)[1]
    return f"{_text(evaluation.measured[metric, known.name])}\nn = {positive.sum():,} of {len(positive):,}"


def _text(sampled: Sampled) -> str:
    return with_interval(_metric(sampled))


def _metric(sampled: Sampled) -> dict[str, float | None]:
    found = estimate(sampled)
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    return {name: None if number is None else round(number, 6) for name, number in numbers.items()}
