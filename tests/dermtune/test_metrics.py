import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from isic_challenge_scoring.classification import ClassificationMetric, ClassificationScore
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from dermtune import metrics
from dermtune.metrics import Predictions, Sampled, estimate, macro, resample
from dermtune_bundle.manifest import OperatingPoint

POINT = OperatingPoint("mel", "mel", 0.3, "a goal", None, None)


def predictions(*, images: int = 240, lesions: int = 150, seed: int = 0) -> Predictions:
    """Scores with many ties, several images a lesion, three classes of unlike frequency."""
    rng = np.random.default_rng(seed)
    lesion = rng.integers(lesions, size=images)
    labels = rng.choice(3, size=lesions, p=[0.2, 0.7, 0.1])[lesion]
    raw = rng.integers(1, 6, size=(images, 3)) + 3 * np.eye(3)[labels]
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    ids = np.array([f"L{number}" for number in lesion], dtype=object)
    return Predictions(
        ("mel", "nv", "df"), probabilities, labels.astype(np.int64), probabilities.argmax(axis=1), ids
    )


def positives(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


@pytest.mark.parametrize(
    ("scores", "positive", "area", "precision"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1], 1.0, 1.0),
        ([0.4, 0.3, 0.2, 0.1], [0, 0, 1, 1], 0.0, (1 / 3 + 2 / 4) / 2),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75, (1 + 2 / 3) / 2),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], 0.5, 0.5),  # all tie: as good as guessing
        ([0.5, 0.5, 0.9], [0, 1, 1], 0.75, (1 + 2 / 3) / 2),  # one tie counts half
    ],
)
def test_areas_are_those_computed_by_hand(
    scores: list[float], positive: list[int], area: float, precision: float
) -> None:
    assert metrics.auroc(np.array(scores), positives(*positive)).value == pytest.approx(area)
    found = metrics.average_precision(np.array(scores), positives(*positive)).value
    assert found == pytest.approx(precision)


def test_shares_are_those_computed_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    labels, named = np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])

    assert metrics.accuracy(named, labels).value == 0.75
    assert metrics.recall(named, labels, 0).value == 1
    assert metrics.recall(named, labels, 1).value == pytest.approx(2 / 3)
    assert metrics.sensitivity(probabilities[:, 1], labels == 1, 0.7).value == pytest.approx(2 / 3)
    assert metrics.specificity(probabilities[:, 1], labels == 1, 0.7).value == 1
    # squared error of each image, over both classes: 0.02, 0.72, 0.18, 0.08
    assert metrics.brier(probabilities, labels).value == pytest.approx(0.25)
    # top labels 0.9 right, 0.6 wrong, 0.7 right, 0.8 right: each alone in its bin
    error = metrics.expected_calibration_error(probabilities, labels).value
    assert error == pytest.approx((0.1 + 0.6 + 0.3 + 0.2) / 4)


def test_the_partial_area_is_that_computed_by_hand() -> None:
    """Five positives, of which the lowest lies below one of two negatives: above 0.8, half of the area."""
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.5, 0.1])
    positive = positives(1, 1, 1, 1, 1, 0, 0)
    assert metrics.partial_auroc(scores, positive).value == pytest.approx(0.1)
    assert metrics.partial_auroc(-scores, positive).value == pytest.approx(0.0)
    assert metrics.partial_auroc(np.zeros(7), positive).value == pytest.approx(0.02), "guessing"
    assert metrics.partial_auroc(scores, positives(1, 1, 1, 1, 1, 1, 1)).value is None


def test_the_classwise_error_sees_what_the_top_label_hides() -> None:
    """A class that occurs in every tenth image and is always given 0.3 is wrong by 0.2; so is the other."""
    labels = np.array([0] * 90 + [1] * 10)
    given_ = np.tile([0.7, 0.3], (100, 1))
    found = metrics.classwise_calibration_error(given_, labels)
    assert found.value == pytest.approx(0.2)
    right = metrics.classwise_calibration_error(np.tile([0.9, 0.1], (100, 1)), labels)
    assert right.value == pytest.approx(0)


def test_predictive_values_at_another_prevalence_are_those_of_bayes() -> None:
    """Altman and Bland 1994: of 100,000 with a prevalence of 1%, 900 true and 9,900 false alarms."""
    nothing = np.empty(0)
    found, spared = Sampled(0.9, nothing), Sampled(0.9, nothing)
    ppv, npv = metrics.at_prevalence(found, spared, 0.01)
    assert ppv.value == pytest.approx(900 / (900 + 9900))
    assert npv.value == pytest.approx(89100 / (89100 + 100))
    assert metrics.at_prevalence(Sampled(None, nothing), spared, 0.01)[0].value is None
    no_alarm = metrics.at_prevalence(Sampled(0.0, nothing), Sampled(1.0, nothing), 0.01)[0]
    assert no_alarm.value is None, "nothing is flagged"


def test_malignant_is_all_malignant_classes_together() -> None:
    given_ = replace(predictions(), malignant=(True, False, True))
    scores, positive = given_.of("malignant")
    assert scores == pytest.approx(1 - given_.probabilities[:, 1])
    assert np.array_equal(positive, given_.labels != 1)


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_figures_are_those_of_the_isic_challenge_of_2018() -> None:
    """Task 3, by its organisers' own package: decisions at a probability above one half, ties undecided."""
    given_ = predictions()
    rng = np.random.default_rng(1)  # no ties: ours gives them to the first class, theirs to none
    probabilities = rng.dirichlet(np.ones(3), len(given_.labels))
    given_ = replace(given_, probabilities=probabilities, named=probabilities.argmax(axis=1))
    truth = pd.DataFrame(np.eye(3)[given_.labels], columns=given_.classes)
    theirs = ClassificationScore(
        truth,
        pd.DataFrame(probabilities, columns=given_.classes),
        pd.DataFrame({"score_weight": 1.0, "validation_weight": 1.0}, index=truth.index),
        ClassificationMetric.BALANCED_ACCURACY,
    )
    above_half = np.nextafter(0.5, 1)
    points = [OperatingPoint(name, name, above_half, "", None, None) for name in given_.classes]
    measured = metrics.measure(given_, points, draws=1, rng=rng)
    assert measured["balanced_accuracy",].value == pytest.approx(theirs.overall, abs=1e-12)
    names = {"auroc": "auc", "average_precision": "ap"}
    names |= {name: name for name in ("sensitivity", "specificity", "ppv", "npv")}
    for ours, name in itertools.product(names, given_.classes):
        found = measured[ours, name].value
        assert found == pytest.approx(theirs.per_category[names[ours]][name], abs=1e-12), (ours, name)
    for name in given_.classes:
        scores, positive = given_.of(name)
        said = (scores > 0.5).astype(np.int64)
        row = theirs.per_category.loc[name]
        assert metrics.f1(said, positive.astype(np.int64), 1).value == pytest.approx(row["dice"], abs=1e-12)
        assert metrics.accuracy(said, positive.astype(np.int64)).value == pytest.approx(row["accuracy"])
        # theirs is the whole area below the curve from where it reaches 0.8; ours is what lies above 0.8
        fpr, tpr, _ = roc_curve(positive, scores, drop_intermediate=False)
        end = tpr.searchsorted(0.8)
        start = np.interp(0.8, tpr[end - 1 : end + 1], fpr[end - 1 : end + 1])
        ours_below = measured["partial_auroc", name].value + 0.8 * (1 - start)
        assert ours_below == pytest.approx(row["auc_sens_80"], abs=1e-12), name


def test_a_probability_of_one_falls_into_the_last_bin() -> None:
    sure = np.array([[1.0, 0.0], [1.0, 0.0]])

    assert metrics.expected_calibration_error(sure, np.array([0, 1])).value == pytest.approx(0.5)


def partial_area(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """As the ISIC 2024 challenge takes it from scikit-learn, whose McClish scaling it undoes."""
    most = 0.2
    scaled = roc_auc_score(~positive, -scores, max_fpr=most, sample_weight=weights)
    least = most**2 / 2
    return float(least + (most - least) * (2 * scaled - 1))


def test_every_draw_agrees_with_scikit_learn_under_the_same_weights() -> None:
    given_ = predictions()
    probabilities, labels = given_.probabilities, given_.labels
    scores, positive = given_.of("mel")
    draws = next(metrics.lesion_weights(given_.lesions, draws=25, rng=np.random.default_rng(3)))

    ours = {
        "auroc": metrics.auroc(scores, positive),
        "precision": metrics.average_precision(scores, positive),
        "accuracy": metrics.accuracy(given_.named, labels),
        "brier": metrics.brier(probabilities, labels),
        "sensitivity": metrics.sensitivity(scores, positive, 0.3),
        "ppv": metrics.ppv(scores, positive, 0.3),
        "npv": metrics.npv(scores, positive, 0.3),
        "f1": metrics.f1(given_.named, labels, 0),
        "nll": metrics.negative_log_likelihood(probabilities, labels),
        "partial": metrics.partial_auroc(scores, positive),
    }
    for row, weights in enumerate(draws):
        theirs = {
            "auroc": roc_auc_score(positive, scores, sample_weight=weights),
            "precision": average_precision_score(positive, scores, sample_weight=weights),
            "accuracy": accuracy_score(labels, given_.named, sample_weight=weights),
            "brier": brier_score_loss(labels, probabilities, sample_weight=weights, scale_by_half=False),
            "sensitivity": recall_score(positive, scores >= 0.3, sample_weight=weights),
            "ppv": precision_score(positive, scores >= 0.3, sample_weight=weights),
            "npv": precision_score(~positive, scores < 0.3, sample_weight=weights),
            "f1": f1_score(positive, given_.named == 0, sample_weight=weights),
            "nll": log_loss(labels, probabilities, sample_weight=weights),
            "partial": partial_area(positive, scores, weights),
        }
        for name, metric in ours.items():
            assert metric.weighted(draws)[row] == pytest.approx(theirs[name], abs=1e-12), name


def test_the_value_is_that_of_each_image_counted_once() -> None:
    given_ = predictions()
    once = np.ones((1, len(given_.labels)))

    for metric in (
        metrics.auroc(*given_.of("df")),
        metrics.average_precision(*given_.of("df")),
        metrics.specificity(*given_.of("df"), 0.3),
        metrics.recall(given_.named, given_.labels, 2),
        metrics.expected_calibration_error(given_.probabilities, given_.labels),
        metrics.classwise_calibration_error(given_.probabilities, given_.labels),
        metrics.partial_auroc(*given_.of("df")),
        metrics.f1(given_.named, given_.labels, 2),
    ):
        assert metric.weighted(once)[0] == pytest.approx(metric.value, abs=1e-12)


def test_balanced_accuracy_is_scikit_learns() -> None:
    given_ = predictions()

    found = metrics.measure(given_, [POINT], draws=100, rng=np.random.default_rng(0))

    expected = balanced_accuracy_score(given_.labels, given_.probabilities.argmax(axis=1))
    assert found["balanced_accuracy",].value == pytest.approx(expected, abs=1e-12)


def test_what_a_split_cannot_answer_is_undefined() -> None:
    scores, none = np.array([0.2, 0.7]), positives(0, 0)

    undefined = [
        metrics.auroc(scores, none),
        metrics.auroc(scores, ~none),
        metrics.average_precision(scores, none),
        metrics.sensitivity(scores, none, 0.5),
        metrics.specificity(scores, ~none, 0.5),
    ]

    for metric in undefined:
        assert metric.value is None
        assert np.isnan(metric.weighted(np.ones((3, 2)))).all()


def test_a_macro_mean_is_over_the_defined_classes_and_says_how_many() -> None:
    defined = [Sampled(0.6, np.array([0.5, np.nan])), Sampled(0.8, np.array([0.9, 0.7]))]
    undefined = Sampled(None, np.full(2, np.nan))

    mean = macro([*defined, undefined])

    assert (mean.value, mean.classes) == (pytest.approx(0.7), 2)
    assert mean.draws[0] == pytest.approx(0.7)
    assert np.isnan(mean.draws[1])  # this draw lacks a class: the mean of the rest is another metric


def test_a_macro_mean_of_nothing_is_undefined() -> None:
    mean = macro([Sampled(None, np.full(2, np.nan))])

    assert (mean.value, mean.classes) == (None, 0)
    assert estimate(mean) == metrics.Estimate(None, None, None, left_out=2)


def test_undefined_draws_are_left_out_of_the_interval_and_counted() -> None:
    found = estimate(Sampled(0.5, np.array([np.nan, 0.4, 0.6, np.nan])))

    assert (found.low, found.high, found.left_out) == (pytest.approx(0.405), pytest.approx(0.595), 2)


def test_images_of_one_lesion_are_drawn_together() -> None:
    lesions = np.array(["a", "b", "a", "c"], dtype=object)

    weights = np.concatenate(list(metrics.lesion_weights(lesions, draws=200, rng=np.random.default_rng(0))))

    assert weights.shape == (200, 4)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()  # as many lesions as there are


def test_how_draws_are_chunked_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = predictions()

    def areas() -> np.ndarray:
        metric = {"a": metrics.auroc(*given_.of("mel"))}
        return resample(metric, given_.lesions, draws=120, rng=np.random.default_rng(5))["a"].draws

    whole = areas()
    monkeypatch.setattr(metrics, "_CHUNK", 7 * len(given_.labels))

    assert (areas() == whole).all()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth, covered, rng = 0.7, 0, np.random.default_rng(11)
    for _ in range(200):
        lesions = np.repeat(np.arange(120), 2).astype(object)
        right = np.repeat(rng.random(120) < truth, 2)  # both images of a lesion share its fate
        metric = {"share": metrics.share(right, np.ones(240, bool))}
        found = estimate(resample(metric, lesions, draws=300, rng=rng)["share"])
        covered += found.low is not None and found.low <= truth <= (found.high or 0)

    assert 0.90 <= covered / 200 <= 0.99


scores_and_labels = st.integers(4, 30).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.integers(0, 6).map(lambda x: x / 6)),
        arrays(np.bool_, n).filter(lambda p: p.any() and not p.all()),
        st.permutations(range(n)),
    )
)


@settings(max_examples=60, deadline=None)
@given(scores_and_labels)
def test_areas_depend_on_the_ranks_of_the_scores_alone(
    case: tuple[np.ndarray, np.ndarray, list[int]],
) -> None:
    scores, positive, order = case
    weights = np.random.default_rng(0).integers(0, 4, (5, len(scores))).astype(np.float64)

    for metric in (metrics.auroc, metrics.average_precision):
        plain = metric(scores, positive)
        stretched = metric(np.exp(3 * scores) - 7, positive)
        shuffled = metric(scores[order], positive[order])
        assert plain.value == pytest.approx(stretched.value, abs=1e-12)
        assert plain.value == pytest.approx(shuffled.value, abs=1e-12)
        np.testing.assert_allclose(plain.weighted(weights), stretched.weighted(weights), atol=1e-12)
        np.testing.assert_allclose(plain.weighted(weights), shuffled.weighted(weights[:, order]), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(scores_and_labels)
def test_turning_scores_and_labels_round_keeps_the_auroc(
    case: tuple[np.ndarray, np.ndarray, list[int]],
) -> None:
    scores, positive, _ = case

    there, back = metrics.auroc(scores, positive).value, metrics.auroc(-scores, ~positive).value

    assert there == pytest.approx(back, abs=1e-12)


def test_the_summary_is_rounded_nested_and_counts_what_is_undefined() -> None:
    given_ = predictions()
    without_df = given_.labels != 2
    given_ = Predictions(
        given_.classes,
        given_.probabilities[without_df],
        given_.labels[without_df],
        given_.named[without_df],
        given_.lesions[without_df],
    )

    measured = metrics.measure(given_, [POINT], draws=200, rng=np.random.default_rng(0))
    summary = metrics.summarize(given_, [POINT], measured)

    assert summary["n_images"] == len(given_.labels)
    assert summary["n_lesions"] == len(set(given_.lesions))
    assert set(summary["auroc"]) == {"mel", "nv", "df", "macro"}
    assert set(summary["auroc"]["mel"]) == {"value", "low", "high"}
    assert summary["auroc"]["mel"]["value"] == round(summary["auroc"]["mel"]["value"], 6)
    assert summary["auroc"]["df"]["value"] is None
    assert "no test image counts in it" in summary["auroc"]["df"]["reason"]
    assert summary["undefined"]["auroc"] == {"draws": 200, "classes": 1}
    assert summary["threshold"] == {"mel": 0.3}
    for scope in ("balanced_accuracy", "accuracy", "brier", "ece"):
        assert summary[scope]["low"] <= summary[scope]["high"]


def test_the_same_seed_gives_the_same_intervals() -> None:
    given_ = predictions()

    first, second = (
        metrics.summarize(
            given_, [POINT], metrics.measure(given_, [POINT], draws=100, rng=np.random.default_rng(4))
        )
        for _ in range(2)
    )

    assert first == second


def test_the_curves_tables_hold_every_class_that_has_one() -> None:
    given_ = predictions()

    roc, pr = metrics.roc_table(given_), metrics.pr_table(given_)

    assert list(roc["class"].unique()) == ["mel", "nv", "df"]
    assert roc[["fpr", "tpr", "threshold"]].to_numpy().max() == 1
    assert pr[["recall", "precision", "threshold"]].to_numpy().max() == 1
    assert not roc.isna().any(axis=None)
    one_class = Predictions(
        given_.classes,
        given_.probabilities,
        np.zeros_like(given_.labels),
        given_.named,
        given_.lesions,
    )
    assert list(metrics.roc_table(one_class).columns) == ["class", "fpr", "tpr", "threshold"]
    assert list(metrics.pr_table(one_class)["class"].unique()) == ["mel"]


def test_the_reliability_table_counts_every_image_once() -> None:
    given_ = predictions()

    table = metrics.reliability_table(
        *given_.of("nv"), given_.lesions, draws=100, rng=np.random.default_rng(0)
    )

    assert table["n"].sum() == len(given_.labels)
    assert table["predicted"].between(table["low"], table["high"]).all()
    assert (table["observed_low"] <= table["observed_high"]).all()


def test_a_perfect_share_has_the_exact_interval_of_its_lesions() -> None:
    """Clopper and Pearson: with none of n missed, the bound is 0.025 ** (1 / n); 31 lesions give 0.888."""
    ids = np.array([f"L{number // 2}" for number in range(62)], dtype=object)
    everything = np.ones(62, bool)
    found = resample(
        {"all": metrics.share(everything, everything), "none": metrics.share(~everything, everything)},
        ids,
        draws=100,
        rng=np.random.default_rng(0),
    )
    assert estimate(found["all"]) == metrics.Estimate(1.0, pytest.approx(0.8878, abs=1e-4), 1.0)
    assert estimate(found["none"]) == metrics.Estimate(0.0, 0.0, pytest.approx(0.1122, abs=1e-4))


def test_another_perfect_metric_has_no_interval() -> None:
    perfect = metrics.auroc(np.array([0.1, 0.2, 0.8, 0.9]), positives(0, 0, 1, 1))
    ids = np.array(list("abcd"), dtype=object)
    found = resample({"auroc": perfect}, ids, draws=200, rng=np.random.default_rng(0))["auroc"]
    assert (estimate(found).value, estimate(found).low, estimate(found).high) == (1.0, None, None)


def test_the_headline_holds_a_few_plain_values() -> None:
    given_ = predictions()
    measured = metrics.measure(given_, [POINT], draws=100, rng=np.random.default_rng(0))
    summary = metrics.summarize(given_, [POINT], measured)
    headline = metrics.headline(summary)
    assert list(headline) == [
        "auroc_macro",
        "average_precision_macro",
        "balanced_accuracy",
        "sensitivity_mel",
        "specificity_mel",
        "brier",
        "calibration_error",
    ]
    assert headline["auroc_macro"] == summary["auroc"]["macro"]["value"]


def test_predictive_values_keep_the_doubt_of_a_rate_that_is_exactly_one() -> None:
    """3 of 15 found and none of 71 flagged: at 10% prevalence, the PPV may be as low as 0.3."""
    ids = np.array([f"L{number}" for number in range(86)], dtype=object)
    positive = np.arange(86) < 15
    scores = np.where(np.arange(86) < 3, 0.9, 0.1)
    rates = {
        "sensitivity": metrics.sensitivity(scores, positive, 0.5),
        "specificity": metrics.specificity(scores, positive, 0.5),
    }
    sampled = metrics.resample(rates, ids, draws=2000, rng=np.random.default_rng(0))
    ppv, npv = metrics.at_prevalence(sampled["sensitivity"], sampled["specificity"], 0.1)
    found = metrics.estimate(ppv)
    assert found.value == 1
    assert found.low == pytest.approx(0.1, abs=0.1)
    assert found.high == 1
    assert metrics.estimate(npv).low < metrics.estimate(npv).value < metrics.estimate(npv).high


def test_a_calibration_error_lies_within_its_interval() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.integers(3, size=300)
        raw = np.exp(rng.normal(0, 1, (300, 3)) + 1.5 * np.eye(3)[labels])
        probabilities = raw / raw.sum(axis=1, keepdims=True)
        ids = np.array([f"L{number}" for number in range(300)], dtype=object)
        errors = {
            "ece": metrics.expected_calibration_error(probabilities, labels),
            "classwise": metrics.classwise_calibration_error(probabilities, labels),
        }
        for one in metrics.resample(errors, ids, draws=300, rng=rng).values():
            found = metrics.estimate(one)
            assert 0 <= found.low < found.value < found.high


def test_a_mean_that_is_no_share_gets_no_exact_interval() -> None:
    sizes, everything = np.ones(30), np.ones(30, bool)
    ids = np.array([f"L{number}" for number in range(30)], dtype=object)
    (one,) = metrics.resample(
        {"size": metrics.share(sizes, everything)}, ids, draws=100, rng=np.random.default_rng(0)
    ).values()
    assert metrics.estimate(one) == metrics.Estimate(1.0, None, None)


@pytest.mark.parametrize(("lesions", "has_interval"), [(1, False), (2, False), (3, True)])
def test_what_one_or_two_lesions_say_gets_no_interval(lesions: int, has_interval: bool) -> None:  # noqa: FBT001
    positive = np.arange(200) < lesions
    scores = np.random.default_rng(0).random(200)
    ids = np.array([f"L{number}" for number in range(200)], dtype=object)
    (one,) = metrics.resample(
        {"area": metrics.auroc(scores, positive)}, ids, draws=400, rng=np.random.default_rng(0)
    ).values()
    assert (metrics.estimate(one).low is not None) == has_interval


def test_images_that_belong_together_are_drawn_together() -> None:
    """Three lesions of a patient, all right or all wrong, say no more than one."""
    patients = np.repeat(np.arange(60), 3)
    right = np.random.default_rng(0).random(60)[patients] < 0.7
    labels = np.zeros(180, np.int64)
    probabilities = np.stack([right, ~right], axis=1).astype(float)
    lesions = np.array([f"L{number}" for number in range(180)], dtype=object)
    groups = np.array([f"G{number}" for number in patients], dtype=object)
    apart = metrics.Predictions(("mel", "nv"), probabilities, labels, probabilities.argmax(1), lesions)
    together = replace(apart, groups=groups)
    wide, narrow = (
        metrics.estimate(metrics.measure(one, [], draws=500, rng=np.random.default_rng(0))["accuracy",])
        for one in (together, apart)
    )
    assert wide.high - wide.low == pytest.approx(np.sqrt(3) * (narrow.high - narrow.low), rel=0.15)
