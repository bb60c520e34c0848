"""How well each group is served: metrics of what networks said of lesions that they did not learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from dermtune.compare import difference
from dermtune.errors import DataError
from dermtune.metrics import Metric, Sampled, auroc, estimate, macro, recall, resample, share
from dermtune.operating_points import threshold_for_sensitivity
from dermtune.recipe import Attribute, Mitigation
from dermtune.splits import assign_folds
from dermtune.subgroups import LEAST_LESIONS, NOT_GIVEN, ordered

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
MITIGATIONS: Final[tuple[Mitigation, ...]] = ("none", "reweighting", "group_balanced", "group_dro")
ALL, WORST = "all", "worst"
"""In the place of a group: all images, and whichever group large enough to judge is worst."""
Trained = tuple[Attribute | None, Mitigation]
"""For whom a network was trained, and how; no one: without mitigation."""


@dataclass(frozen=True)
class Judged:
    """What networks said of N images that they did not learn from."""

    ranks: Floats
    """(N,) of the malignant score among the images that the same network judged, above 0 and at most 1."""
    flagged: Bools
    """(N,) at a threshold chosen on others of these images."""
    named: NDArray[np.int64]
    """(N,) class that is named."""


def judge(
    said: Mapping[int, Mapping[str, Any]],
    fold_of: NDArray[np.int64],
    positive: Bools,
    lesions: NDArray[np.object_],
    *,
    sensitivity: float,
    seed: int,
) -> Judged:
    """Put together what the networks of all folds said.

    Networks of other folds give other scores to the same lesion: each one's are ranked among themselves, and
    it has thresholds of its own: half of its lesions choose the other half's.

    Args:
        said: by fold, `scores` and `named` of its images, in their order.
        fold_of: (N,) fold of each image.
        positive: (N,) is it malignant?
        lesions: (N,) ids of what must not part.
        sensitivity: what each threshold is chosen for.
        seed: draws the halves.

    Raises:
        DataError: a half has no malignant lesion.
    """
    count = len(fold_of)
    ranks, flagged, named = np.empty(count), np.empty(count, bool), np.empty(count, np.int64)
    for fold, one in said.items():
        rows = np.flatnonzero(fold_of == fold)
        scores = np.asarray(one["scores"], np.float64)
        ranks[rows], named[rows] = rankdata(scores) / len(rows), one["named"]
        half_of = assign_folds([*map(str, positive[rows])], [*lesions[rows]], folds=2, seed=seed)
        for half in (half_of == 0, half_of == 1):
            if not positive[rows[~half]].any():
                raise DataError(
                    "study.bias: too few malignant lesions in a fold to choose a threshold on half of them;"
                    " lower study.bias.folds, or raise study.bias.images"
                )
            threshold = threshold_for_sensitivity(scores[~half], positive[rows[~half]], sensitivity)
            flagged[rows[half]] = scores[half] >= threshold
    return Judged(ranks, flagged, named)


def measure_bias(
    judged: Mapping[Trained, Sequence[Judged]],
    *,
    labels: NDArray[np.int64],
    positive: Bools,
    lesions: NDArray[np.object_],
    groups: pd.DataFrame,
    sizes: pd.DataFrame,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Metrics of all images and of each group, after each mitigation, and what it changed.

    AUROC of malignant against benign; sensitivity and specificity at one threshold for all; balanced accuracy
    over all classes, of all images alone. Each is the mean over repeats. Intervals are 95%, by bootstrap over
    lesions, the same draws before and after; what is `worst` is found anew in each draw.

    Args:
        judged: as `cross_fit` gives it.
        labels: (N,) classes.
        positive: (N,) is it malignant?
        lesions: (N,) ids of what is drawn together.
        groups: (N, attributes).
        sizes: as `group_sizes` gives them; a group with too few lesions is not judged.
        draws: of the bootstrap.
        seed: where they come from.

    Returns:
        A row an attribute, mitigation, group (`all` and `worst` as well) and metric: `value`, `low`, `high`,
        `change` from no mitigation with `change_low` and `change_high`, how far `apart` the repeats without
        mitigation lie (NaN: there is one), and `which` group is worst.
    """
    rows = []
    for attribute in map(str, groups):
        own = sizes[sizes["attribute"] == attribute]
        members = {ALL: np.ones(len(positive), bool)}
        members |= {group: (groups[attribute] == group).to_numpy() for group in own["group"]}
        metrics = {
            (mitigation, repeat, *key): metric
            for mitigation in MITIGATIONS
            for repeat, one in enumerate(judged[_trained(attribute, mitigation)])
            for key, metric in _metrics(one, labels, positive, members, _judgeable(own)).items()
        }
        sampled = resample(metrics, lesions, draws=draws, rng=np.random.default_rng(seed))
        known = [str(group) for group in own["group"] if group != NOT_GIVEN]
        before = _over_repeats(sampled, "none", known)
        apart = _apart(sampled, known)
        for mitigation in MITIGATIONS:
            for key, one in _over_repeats(sampled, mitigation, known).items():
                numbers = _numbers(before[key].sampled, one.sampled)
                rows.append((attribute, mitigation, *key, *numbers, apart[key], one.which))
    columns = ["attribute", "mitigation", "group", "metric", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "change", "change_low", "change_high", "apart", "which"])


def _trained(attribute: str, mitigation: Mitigation) -> Trained:
    return (None, "none") if mitigation == "none" else (cast("Attribute", attribute), mitigation)


def _metrics(
    judged: Judged,
    labels: NDArray[np.int64],
    positive: Bools,
    members: Mapping[str, Bools],
    judgeable: Mapping[str, set[str]],
) -> dict[tuple[str, str], Metric]:
    """By group and metric; balanced accuracy comes as the recall of each class."""
    found: dict[tuple[str, str], Metric] = {}
    for group, own in members.items():
        for name in ("auroc", "sensitivity", "specificity") if group == ALL else sorted(judgeable[group]):
            if name == "auroc":
                found[group, name] = _auroc_within(judged.ranks, positive, own)
            elif name == "sensitivity":
                found[group, name] = share(judged.flagged, own & positive)
            else:
                found[group, name] = share(~judged.flagged, own & ~positive)
    recalls = {(ALL, f"recall {label}"): recall(judged.named, labels, label) for label in np.unique(labels)}
    return found | recalls


def _auroc_within(scores: Floats, positive: Bools, members: Bools) -> Metric:
    inner = auroc(scores[members], positive[members])
    return Metric(inner.value, lambda weights: inner.weighted(weights[:, members]))


def _judgeable(sizes: pd.DataFrame) -> dict[str, set[str]]:
    """The metrics of each group that enough lesions stand behind."""
    needed = {"auroc": ["malignant", "benign"], "sensitivity": ["malignant"], "specificity": ["benign"]}
    return {
        row["group"]: {name for name, lesions in needed.items() if (row[lesions] >= LEAST_LESIONS).all()}
        for _, row in sizes.iterrows()
    }


@dataclass(frozen=True)
class _Mean:
    sampled: Sampled
    which: str = ""
    """The group that is worst."""


def _over_repeats(
    sampled: Mapping[tuple[Any, ...], Sampled], mitigation: Mitigation, known: Sequence[str]
) -> dict[tuple[str, str], _Mean]:
    """By group and metric, the mean over repeats; of the groups that are known, the worst as well."""
    repeats: dict[tuple[str, str], list[Sampled]] = {}
    for (one, _, group, metric), value in sampled.items():
        if one == mitigation:
            name = "balanced_accuracy" if metric.startswith("recall") else metric
            repeats.setdefault((group, name), []).append(value)
    found = {key: _Mean(macro(values)) for key, values in repeats.items()}
    for metric in ("auroc", "sensitivity", "specificity"):
        own = {group: found[group, metric].sampled for group in known if (group, metric) in found}
        if len(own) > 1:
            which = min(own, key=lambda group: own[group].value or 0.0)
            draws = np.min([one.draws for one in own.values()], axis=0)
            # the worst of several is drawn lower than it is: that is taken off its interval
            found[WORST, metric] = _Mean(Sampled(own[which].value, draws, is_biased=True), which)
    return found


def _apart(sampled: Mapping[tuple[Any, ...], Sampled], known: Sequence[str]) -> dict[tuple[str, str], float]:
    """How far the repeats without mitigation lie apart: what training anew changes by itself."""
    repeats = sorted({repeat for _, repeat, _, _ in sampled})
    single = [
        _over_repeats({key: one for key, one in sampled.items() if key[1] == repeat}, "none", known)
        for repeat in repeats
    ]
    if len(single) < 2:  # noqa: PLR2004 (one lies apart from nothing)
        return dict.fromkeys(single[0], float("nan"))
    values = {key: [one[key].sampled.value or 0.0 for one in single] for key in single[0]}
    return {key: max(found) - min(found) for key, found in values.items()}


def _numbers(before: Sampled, after: Sampled) -> tuple[float | None, ...]:
    own, change = estimate(after), difference("", before, after)
    high = None if own.high is None else min(own.high, 1.0)
    return own.value, own.low, high, change.value, change.low, change.high


def group_sizes(groups: pd.DataFrame, lesions: NDArray[np.object_], positive: Bools) -> pd.DataFrame:
    """A row an attribute and group: `images`, `lesions`, and the `malignant` and `benign` ones of these.

    Args:
        groups: (N, attributes) text.
        lesions: (N,) ids.
        positive: (N,) is it malignant?
    """
    rows = []
    for attribute in map(str, groups):
        for group in ordered(attribute, groups[attribute]):
            own = (groups[attribute] == group).to_numpy()
            parts = (own, own & positive, own & ~positive)
            rows.append(
                (attribute, group, int(own.sum()), *(len(np.unique(lesions[part])) for part in parts))
            )
    return pd.DataFrame(rows, columns=["attribute", "group", "images", "lesions", "malignant", "benign"])
