import numpy as np
import pandas as pd
import pytest

from dermtune.errors import DataError
from dermtune.studies.bias_measures import MITIGATIONS, Judged, group_sizes, judge, measure_bias

COUNT = 160
LESIONS = np.array([f"L{row}" for row in range(COUNT)], object)
LABELS = np.arange(COUNT) % 2  # class 1 is malignant
POSITIVE = LABELS == 1
SEX = np.where(np.arange(COUNT) % 8 < 4, "female", "male")
SEX[:12] = "not given"
SEX[12:18] = "other"
GROUPS = pd.DataFrame({"sex": SEX})
SIZES = group_sizes(GROUPS, LESIONS, POSITIVE)


def said(*, wrong: np.ndarray) -> Judged:
    """All are told apart but those that are wrong."""
    truth = POSITIVE ^ wrong
    ranks = (truth + np.linspace(0.1, 0.2, COUNT)) / 2
    return Judged(ranks, truth, truth.astype(np.int64))


def measure(judged: dict, draws: int = 200) -> pd.DataFrame:
    found = measure_bias(
        judged,
        labels=LABELS,
        positive=POSITIVE,
        lesions=LESIONS,
        groups=GROUPS,
        sizes=SIZES,
        draws=draws,
        seed=1,
    )
    return found.set_index(["mitigation", "group", "metric"])


def test_sizes_count_lesions() -> None:
    lesions = np.array(["a", "a", "b", "c"], object)
    groups = pd.DataFrame({"sex": ["female", "female", "male", "not given"]})
    sizes = group_sizes(groups, lesions, np.array([True, True, False, True])).set_index("group")
    assert sizes.loc["female"].tolist() == ["sex", 2, 1, 1, 0]
    assert sizes.loc["male"].tolist() == ["sex", 1, 1, 0, 1]
    assert sizes.index[-1] == "not given"


def test_a_group_that_is_served_worse_is_found_and_its_gain_measured() -> None:
    male = SEX == "male"
    males = np.flatnonzero(male & POSITIVE)
    missed = np.isin(np.arange(COUNT), males[: len(males) // 2])
    none, better = said(wrong=missed), said(wrong=np.zeros(COUNT, bool))
    judged = {(None, "none"): [none]} | {("sex", name): [better] for name in MITIGATIONS[1:]}
    found = measure(judged)
    share = 1 - missed.sum() / len(males)
    assert found.loc[("none", "male", "sensitivity"), "value"] == pytest.approx(share)
    assert found.loc[("none", "female", "sensitivity"), "value"] == 1
    worst = found.loc[("none", "worst", "sensitivity")]
    assert (worst["value"], worst["which"]) == (pytest.approx(share), "male")
    assert worst["change"] == 0
    assert pd.isna(worst["apart"]), "one repeat lies apart from nothing"
    gained = found.loc[("group_dro", "worst", "sensitivity")]
    assert gained["change"] == pytest.approx(1 - share)
    assert 0 < gained["change_low"] < gained["change"] < gained["change_high"]
    # of the positives, those missed rank below every negative but those before them
    ranks, own = none.ranks, male
    wins = [one > other for one in ranks[own & POSITIVE] for other in ranks[own & ~POSITIVE]]
    assert found.loc[("none", "male", "auroc"), "value"] == pytest.approx(np.mean(wins))
    recalls = [1 - missed.sum() / POSITIVE.sum(), 1.0]
    assert found.loc[("none", "all", "balanced_accuracy"), "value"] == pytest.approx(np.mean(recalls))


def test_groups_too_small_are_not_judged_and_those_not_given_are_never_worst() -> None:
    unknown = SEX == "not given"
    judged = {(None, "none"): [said(wrong=unknown)]}
    judged |= {("sex", name): judged[None, "none"] for name in MITIGATIONS[1:]}
    found = measure(judged)
    assert ("none", "other", "auroc") not in found.index
    assert ("none", "not given", "auroc") not in found.index, "six of each, where ten are asked for"
    assert found.loc[("none", "worst", "sensitivity"), "which"] in {"female", "male"}


def test_what_repeats_say_is_averaged() -> None:
    one, other = (said(wrong=np.isin(np.arange(COUNT), rows)) for rows in ([21, 23], [21]))
    judged = {(None, "none"): [one, other]}
    judged |= {("sex", name): [other, other] for name in MITIGATIONS[1:]}
    found = measure(judged)
    count = POSITIVE.sum()
    assert found.loc[("none", "all", "sensitivity"), "apart"] == pytest.approx(1 / count)
    assert found.loc[("none", "all", "sensitivity"), "value"] == pytest.approx(1 - 1.5 / count)
    assert found.loc[("group_dro", "all", "sensitivity"), "change"] == pytest.approx(0.5 / count)


def test_no_lesion_chooses_the_threshold_that_judges_it() -> None:
    """One network's scores lie far above the other's, and one half of a fold says nothing of the other."""
    fold_of = np.arange(COUNT) % 4 // 2
    rng = np.random.default_rng(1)
    scores = np.where(fold_of == 0, 0.2, 0.8) + 0.1 * (POSITIVE + rng.random(COUNT))

    def by(changed: np.ndarray) -> Judged:
        folds = {
            fold: {"scores": changed[fold_of == fold], "named": LABELS[fold_of == fold]} for fold in (0, 1)
        }
        return judge(folds, fold_of, POSITIVE, LESIONS, sensitivity=0.9, seed=1)

    found = by(scores)
    assert found.flagged[POSITIVE].mean() > 0.8
    assert found.flagged[~POSITIVE].mean() < 0.4, "a threshold of each network's own"
    assert sorted(found.ranks[fold_of == 0]) == pytest.approx(np.arange(1, 81) / 80)
    lesion = int(np.flatnonzero(POSITIVE)[0])
    raised = scores.copy()
    raised[lesion] = 10.0
    others = np.arange(COUNT) != lesion
    changed = by(raised)
    assert changed.flagged[lesion]
    # it moves the threshold of others, in its own network's other half alone
    moved = np.flatnonzero((changed.flagged != found.flagged) & others)
    assert (fold_of[moved] == fold_of[lesion]).all()


def test_too_few_malignant_lesions_are_refused() -> None:
    positive = np.zeros(8, bool)
    positive[0] = True
    folds = {0: {"scores": np.linspace(0, 1, 8), "named": np.zeros(8)}}
    with pytest.raises(DataError, match=r"lower study\.bias\.folds, or raise study\.bias\.images"):
        judge(folds, np.zeros(8, np.int64), positive, LESIONS[:8], sensitivity=0.9, seed=1)
