"""May a new bundle replace the champion? Only if it is no worse, on lesions that neither has learned from.

Both look at the same test lesions, and what is judged is their difference. The area under the ROC curve of
malignant lesions must be shown to be no worse, on enough lesions: the whole interval of its difference lies
above the margin. Of all else, of which fewer lesions tell, nothing may be found worse: no difference beyond
its margin, none that chance does not explain. What is not found may still be so: the fewer lesions, the more
harm can hide.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from dermtune.appearance import MASKS
from dermtune.compare import Difference, difference, is_made_of, require_table
from dermtune.drift import REFERENCE, make_reference
from dermtune.inference import look_at_images, measure_appearance
from dermtune.leakage import require_no_leakage
from dermtune.metrics import Metric, Predictions, auroc, predictions_of, resample, sensitivity, specificity
from dermtune.shards import PackedImages, open_array, places
from dermtune.subgroups import ATTRIBUTES, NOT_GIVEN, groups_of
from dermtune.table import read_table
from dermtune.upkeep import RetrainConfig
from dermtune_bundle.bundle import Bundle
from dermtune_bundle.manifest import MALIGNANT, OperatingPoint

ALL = "all lesions"
TOO_FEW: Final = "too few lesions"
LEARNED: Final = "learned.txt"
"""Its name beside a bundle in a registry."""
_ALPHA = 0.025  # one side of a 95% interval


@dataclass(frozen=True)
class Judged:
    """One condition: a metric, over all lesions or in a subgroup."""

    where: str
    difference: Difference
    """The candidate's value less the champion's."""
    margin: float
    lesions: int
    least: int
    """Fewer lesions show nothing."""
    is_primary: bool = False
    """Must it be shown that the candidate is no worse?"""

    @property
    def verdict(self) -> str:
        """`no worse`, `worse`, `cannot tell`, or `too few lesions`."""
        value, low, high = self.difference.value, self.difference.low, self.difference.high
        few = self.lesions < self.least
        # Over all lesions, harm counts however few they are.
        is_judged = not few or (self.where == ALL and not self.is_primary)
        if not is_judged or value is None or low is None or high is None:
            return TOO_FEW
        if low >= -self.margin:
            return "cannot tell" if few else "no worse"
        return "worse" if value < -self.margin or high < 0 else "cannot tell"

    @property
    def is_met(self) -> bool:
        """Does nothing here speak against the candidate?"""
        if self.where == ALL:
            return self.verdict == "no worse" or (self.verdict == "cannot tell" and not self.is_primary)
        return self.verdict != "worse"

    def sentence(self) -> str:
        """For people."""
        first, second = self.difference.first, self.difference.second
        shown = "undefined" if first is None or second is None else f"{first:.3f}, now {second:.3f}"
        low, high = self.difference.low, self.difference.high
        if low is not None and high is not None:
            shown += f", a difference of {self.difference.value:+.3f} [{low:+.3f}, {high:+.3f}]"
        return (
            f"{self.where}: {self.difference.metric}: {shown}; of {self.lesions} lesions, margin"
            f" {self.margin:g}: {self.verdict}"
        )


def least_lesions(margin: float) -> int:
    """How many lesions, all judged alike by two models, show that they differ by less than the margin.

    Source: Clopper and Pearson, The use of confidence or fiducial limits, 1934, for none of n.
    """
    return math.ceil(math.log(_ALPHA) / math.log(1 - margin))


def judge(
    champion: tuple[Predictions, Sequence[OperatingPoint]],
    candidate: tuple[Predictions, Sequence[OperatingPoint]],
    groups: pd.DataFrame,
    config: RetrainConfig,
    *,
    draws: int,
    seed: int,
) -> list[Judged]:
    """Every condition, over all lesions and in each subgroup.

    Args:
        champion: its predictions of N images and its operating points.
        candidate: those of the other, of the same images in the same order; it has the same operating points.
        groups: (N, attributes), as of `subgroups.groups_of`.
        config: the margins.
        draws: of the paired bootstrap over lesions.
        seed: where they come from.
    """
    margins, of_subgroup = config.margin.model_dump(), config.subgroup_margin
    everywhere = np.ones(len(groups), bool)
    found = []
    for metric, one, lesions in _differences(champion, candidate, everywhere, draws, seed):
        is_primary, margin = metric == "auroc", margins[metric]
        least = least_lesions(of_subgroup if is_primary else margin)
        found.append(Judged(ALL, one, margin, lesions, least, is_primary=is_primary))
    for attribute, values in groups.items():
        for group in sorted(set(values) - {NOT_GIVEN}):
            members = (values == group).to_numpy()
            if members.all():
                continue
            where, least = f"{ATTRIBUTES[str(attribute)]}: {group}", least_lesions(of_subgroup)
            for _, one, lesions in _differences(champion, candidate, members, draws, seed):
                found.append(Judged(where, one, of_subgroup, lesions, least))
    return found


def _differences(
    champion: tuple[Predictions, Sequence[OperatingPoint]],
    candidate: tuple[Predictions, Sequence[OperatingPoint]],
    members: np.ndarray,
    draws: int,
    seed: int,
) -> Iterable[tuple[str, Difference, int]]:
    """Metric, difference and the lesions behind it, of the images that are members."""
    sides = []
    for predictions, points in (champion, candidate):
        part = predictions.only(members)
        metrics: dict[tuple[str, str], Metric] = {("auroc", MALIGNANT): auroc(*part.of(MALIGNANT))}
        for point in sorted(points, key=lambda one: one.name):
            rates: Mapping[str, Callable[..., Metric]] = {
                "sensitivity": sensitivity,
                "specificity": specificity,
            }
            for rate, measure in rates.items():
                metrics[rate, point.name] = measure(*part.of(point.target), point.threshold)
        sides.append(resample(metrics, part.drawn, draws=draws, rng=np.random.default_rng(seed)))
    for (metric, target), before in sides[0].items():
        name = f"{'AUROC' if metric == 'auroc' else metric}, {target}"
        yield metric, difference(name, before, sides[1][metric, target]), before.lesions or 0


@dataclass(frozen=True)
class Verdict:
    """What became of a candidate."""

    is_promoted: bool
    reasons: list[str]
    """Why not; none: it may be promoted."""
    lesions: int
    judged: list[Judged]


def compare_with_champion(
    champion: Path,
    candidate: Path,
    config: RetrainConfig,
    *,
    images: Path,
    learned: frozenset[str] | None,
    draws: int,
    seed: int,
) -> Verdict:
    """Judge a candidate on the test lesions of its own image table that the champion has not learned from.

    Args:
        champion: the bundle in use.
        candidate: the bundle made of `images`.
        config: the margins.
        images: the folder that ingest wrote.
        learned: what the champion has learned from, as of `learned_from`; None: nobody knows.
        draws: of the paired bootstrap.
        seed: where they come from.

    Raises:
        BundleError: a bundle is damaged.
        DataError: an image is on both sides of a split, or the candidate is of another image table.
    """
    require_no_leakage(images)
    table = read_table(images / "images.parquet")
    before, after = (Bundle.open(bundle, threads=1) for bundle in (champion, candidate))
    require_table(after, images, name=str(candidate))
    if learned is None and is_made_of(before, images):
        learned = frozenset()  # one table, one split: its test lesions are the champion's as well
    if learned is None:
        return _refused("nobody knows which images the champion learned from: promote by hand")
    classes = [[(one.name, one.malignant) for one in bundle.manifest.classes] for bundle in (before, after)]
    if classes[0] != classes[1]:
        return _refused("the champion answers other classes: promote by hand")
    points = {(point.name, point.target): point for point in after.manifest.operating_points}
    shared = [(point, points.get((point.name, point.target))) for point in before.manifest.operating_points]
    if lost := [point.name for point, other in shared if other is None]:
        return _refused(f"the candidate lacks the champion's operating points {', '.join(lost)}")
    known = table["sha256"].isin(learned)
    for column in ("lesion_id", "patient_id"):
        known |= _hashes(table, column).isin(learned)
    is_free = (table["split"] == "test") & ~table["group_id"].isin(table["group_id"][known])
    test = table[is_free].reset_index(drop=True)
    if test.empty:
        return _refused("the champion has learned from every test lesion")
    packed, found = PackedImages(images), places(test)
    masks = open_array(images / MASKS, rows=len(table))[is_free.to_numpy(bool)]
    looks = measure_appearance(
        packed,
        found,
        masks=[mask if has else None for mask, has in zip(masks, test["has_mask"], strict=True)],
        description="appearance",
    )
    said = []
    for bundle, what in ((before, "champion"), (after, "candidate")):
        seen = look_at_images(bundle.graph, packed, found, description=what)
        said.append(predictions_of(bundle.manifest, seen.probabilities, test))
    judged = judge(
        (said[0], [point for point, _ in shared]),
        (said[1], [other for _, other in shared if other]),
        groups_of(pd.concat([test, looks], axis=1)),
        config,
        draws=draws,
        seed=seed,
    )
    reasons = [one.sentence() for one in judged if not one.is_met]
    return Verdict(not reasons, reasons, int(test["lesion_id"].nunique()), judged)


def kept_beside(bundle: Path, images: Path) -> dict[str, bytes]:
    """What a registry keeps beside a bundle, by name: what it learned from, and what its images look like.

    Args:
        bundle: made of `images`.
        images: the folder that ingest wrote.

    Raises:
        BundleError: the bundle is damaged.
        DataError: there is no image table, or the bundle is of another.
    """
    return {
        LEARNED: learned_from(images),
        REFERENCE: make_reference(Bundle.open(bundle, threads=1), images),
    }


def learned_from(images: Path) -> bytes:
    """What a model made of a folder of ingest has seen before its test: a hash a line.

    Of images, lesions and patients. The names need not lie in a registry, yet who guesses one can check it.

    Raises:
        DataError: there is no image table.
    """
    table = read_table(images / "images.parquet")
    table = table[table["split"] != "test"]
    lines = sorted({*table["sha256"], *_hashes(table, "lesion_id"), *_hashes(table, "patient_id")} - {""})
    return "".join(f"{line}\n" for line in lines).encode()


def _hashes(table: pd.DataFrame, column: str) -> pd.Series:
    """Of each row's lesion or patient; empty where it has none."""
    names = table["source"].astype(object) + f"/{column}/" + table[column].astype(object)
    return names.map(lambda name: "" if pd.isna(name) else hashlib.sha256(name.encode()).hexdigest())


def _refused(reason: str) -> Verdict:
    return Verdict(is_promoted=False, reasons=[reason], lesions=0, judged=[])
