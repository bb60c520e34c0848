import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from dermtune.inference import Looked, Probed
from dermtune.metrics import summarize
from dermtune.report import (
    Evaluation,
    draw_figures,
    evaluation_of,
    further_metrics,
    headline,
    most_confident_alarms,
    most_confident_misses,
    overlay,
    render,
)
from dermtune_bundle.manifest import Calibration, Contract, Diagnosis, InputSpec, Limits, OperatingPoint
from dermtune_bundle.quality import Quality

POINT = OperatingPoint("mel", "mel", 0.6, "sensitivity >= 0.90 on validation", 0.9, None)
HOSTILE = "<script>alert(1)</script>"


class Links(HTMLParser):
    """Collects every address that a page refers to, and its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}
        ]


def contract(points: tuple[OperatingPoint, ...] = (POINT,)) -> Contract:
    return Contract(
        classes=(Diagnosis("mel", "Melanoma", malignant=True), Diagnosis("nv", "Nevus", malignant=False)),
        input=InputSpec(224, "RGB", "bilinear"),
        quantization=None,
        calibration=Calibration("temperature", (1.0,) * 2, (0.0,) * 2, (0.0,) * 2, 0.6, 0.5),
        coverage=0.9,
        limits=Limits(2.0, 0.0, 0.0, 255.0, 0, 0.05),
        operating_points=points,
        lineage={"backbone": {"name": HOSTILE, "cut": 4}},
    )


def table(source: str = "ham10000") -> pd.DataFrame:
    rows = pd.DataFrame({"label": ["mel", "nv", "nv", "mel", "nv", "mel", "nv", "nv"]})
    rows["image_id"] = [f"image-{row}" for row in rows.index]
    rows.loc[0, "image_id"] = HOSTILE
    rows["lesion_id"] = rows["image_id"]
    rows["split"] = ["test"] * 6 + ["train", "val"]
    rows = rows.assign(age=50.0, sex="female", site="back", dx_type="histo", source=source)
    return rows.assign(skin_tone=pd.array([None] * len(rows), "string"), group_id=rows["lesion_id"])


def seen(probabilities: np.ndarray) -> tuple[Looked, Probed]:
    """A good image each, of which nothing is hidden by painting it over."""
    count = len(probabilities)
    logits = np.log(np.maximum(probabilities, 1e-9))
    good = [Quality(9.0, 120.0, 150)] * count
    maps = np.zeros((count, 2, 2))
    looked = Looked(probabilities, logits, np.zeros((count, 3)), np.zeros(count), maps, good)
    painted = {"lesion painted over": probabilities[::-1].copy(), "lesion alone": probabilities}
    shown = pd.DataFrame({"lesion_share": [0.2] * count, "ita": [45.0] * count})
    return looked, Probed(shown, painted, np.full(count, 0.8), np.zeros(count, bool))


def evaluated(points: tuple[OperatingPoint, ...] = (POINT,)) -> Evaluation:
    melanoma = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 0.9])
    rng = np.random.default_rng(0)
    return evaluation_of(
        contract(points),
        table()[:6],
        *seen(np.stack([melanoma, 1 - melanoma], axis=1)),
        is_external=False,
        draws=100,
        rng=rng,
        prevalence={},
    )


def look(row: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((40, 50, 3), row, np.uint8), np.ones((2, 3, 4))


def page(points: tuple[OperatingPoint, ...] = (POINT,), *, source: str = "ham10000") -> str:
    evaluation = evaluated(points)
    metrics = summarize(evaluation.predictions, points, evaluation.measured) | {"model_sha256": "0" * 64}
    ids = list(table()["image_id"])
    return render(
        evaluation,
        metrics,
        table(source),
        pngs={"roc": b"png", "other": b"x"},
        misses={point.name: most_confident_misses(evaluation, point, ids, look) for point in points},
        alarms={point.name: most_confident_alarms(evaluation, point, ids, look) for point in points},
        quarantined=pd.DataFrame({"reason": ["truncated", "truncated", HOSTILE]}),
        ingested={"copies": 3, "told": []},
        alike=pd.DataFrame({"test": [HOSTILE], "other": ["b"], "split": ["train"]}),
    )


def test_the_report_needs_nothing_but_itself() -> None:
    links, written = Links(page()), re.sub(r'"data:image/[^"]*"', "", page())

    assert links.addresses
    aside = {"../study/studies.html"}  # what was run afterwards, if anything
    assert all(address.startswith(("data:image/", "#")) for address in {*links.addresses} - aside)
    assert not links.tags & {"script", "link", "iframe", "object", "base", "form"}
    assert not re.search(r"https?://|//\w|@import|url\(", written)


def test_hostile_names_stay_text() -> None:
    written = page()

    assert HOSTILE not in written
    # the miss, its alt text, the lineage, a reason why a file was set aside, an image like another
    assert written.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 5
    assert "1 pairs of a test image and another look so alike" in " ".join(written.split())
    assert "3 pairs of copies were kept together" in " ".join(written.split())
    assert "truncated; " in written


def test_the_report_shows_what_was_missed_and_how_sure_the_model_was() -> None:
    misses = most_confident_misses(evaluated(), POINT, list(table()["image_id"]), look)

    assert [(miss.image_id, miss.score, miss.predicted) for miss in misses] == [
        (HOSTILE, 0.05, "Nevus"),
        ("image-3", 0.4, "Nevus"),
    ]
    assert all(miss.jpeg.startswith(b"\xff\xd8") for miss in misses)
    assert "image-3" in page()


def test_the_report_says_when_nothing_was_missed() -> None:
    assert "None: every image of this kind" in page((OperatingPoint("mel", "mel", 0.01, "g", 0.9, 0.1),))


def test_the_report_is_written_without_any_operating_point() -> None:
    assert "No threshold was chosen" in page(())


def test_synthetic_images_and_they_alone_are_called_so() -> None:
    warning = "say nothing about any patient"

    assert warning in page(source="synthetic")
    assert warning not in page(source="ham10000")


def test_the_report_shows_light_dark_and_print() -> None:
    written = page()

    assert "prefers-color-scheme: dark" in written
    assert "@media print" in written
    assert 'name="viewport"' in written


def test_every_headline_metric_has_its_interval_or_says_that_it_is_undefined() -> None:
    evaluation = evaluated()
    metrics = summarize(evaluation.predictions, [POINT], evaluation.measured)
    metrics["accuracy"] = {"value": None, "low": None, "high": None}
    metrics["brier"] = {"value": 0.5, "low": None, "high": None}

    rows = dict(headline(metrics))

    assert rows["AUROC, macro"].startswith(f"{metrics['auroc']['macro']['value']:.3f} [")
    assert "Sensitivity, mel ≥ 0.600" in rows
    assert rows["Accuracy"] == "undefined"
    assert rows["Brier score (0 best, 2 worst)"] == "0.500 (no interval)"


def test_every_figure_is_drawn_with_n_and_interval() -> None:
    figures = draw_figures(evaluated())

    assert list(figures) == ["confusion", "roc", "pr", "reliability", "risk_coverage", "subgroups"]
    assert "6 images of 6 lesions" in evaluated().note()
    captions = [text.get_text() for axes in figures["roc"].axes for text in axes.texts]
    assert all("n = 3 of 6" in caption and "[" in caption for caption in captions)
    assert len(captions) == 2


def test_figures_are_drawn_where_one_class_is_missing() -> None:
    only_nevi = table()[:6].assign(label="nv")
    scores = np.tile([0.2, 0.8], (6, 1))

    evaluation = evaluation_of(
        contract(),
        only_nevi,
        *seen(scores),
        is_external=False,
        draws=100,
        rng=np.random.default_rng(0),
        prevalence={},
    )

    assert {"confusion", "roc", "pr", "reliability", "subgroups"} < set(draw_figures(evaluation))
    assert evaluation.tables()["roc"].empty


def test_the_tables_hold_a_row_an_image_a_point_and_a_bin() -> None:
    tables = evaluated().tables()

    assert tables["confusion"].to_dict("list") == {
        "actual": ["mel", "nv", "nv", "mel", "nv", "mel"],
        "predicted": ["nv", "nv", "nv", "nv", "mel", "mel"],
    }
    assert set(tables["roc"]["class"]) == set(tables["pr"]["class"]) == {"mel", "nv"}
    assert set(tables["reliability"]["class"]) == {"top label", "mel"}


@pytest.mark.parametrize("is_external", [False, True])
def test_the_answer_comes_first_and_names_the_worst_group(is_external: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(0)
    count = 200
    labels = np.where(np.arange(count) % 2, "nv", "mel")
    old = np.arange(count) % 4 < 2
    melanoma = np.clip(rng.normal(np.where((labels == "mel") & ~old, 0.8, 0.4), 0.1), 0, 1)
    rows = table().iloc[np.zeros(count, int)].reset_index(drop=True)
    rows = rows.assign(
        label=labels,
        split="test",
        image_id=[f"I{row}" for row in range(count)],
        lesion_id=[f"L{row}" for row in range(count)],
        group_id=[f"G{row}" for row in range(count)],
        age=np.where(old, 80.0, 40.0),
    )
    looked = seen(np.stack([melanoma, 1 - melanoma], axis=1))
    evaluation = evaluation_of(
        contract(), rows, *looked, is_external=is_external, draws=100, rng=rng, prevalence={"mel": 0.1}
    )
    metrics = summarize(evaluation.predictions, [POINT], evaluation.measured) | {"model_sha256": "0"}
    metrics |= further_metrics(evaluation) | {"prevalence": {"mel": 0.1}}
    nothing = pd.DataFrame({"reason": []})
    written = render(
        evaluation,
        metrics,
        rows,
        pngs={},
        misses={},
        alarms={},
        quarantined=nothing,
        ingested={},
        alike=pd.DataFrame(),
    )
    words = " ".join(written.split())
    assert ("this is an external validation" in words) == is_external
    assert ("this is no external validation" in words) == (not is_external)
    assert ("this was proved before the measurement" in words) == (not is_external)
    assert "At its most careful threshold (mel), the model finds" in words
    assert "it finds least for age: 75 and over: " in words
    assert "It abstains on 0% (95% interval 0% to 2%) of these images" in words
    assert "where 10.0% are" in words
    worst = metrics["subgroups"]["worst"]
    assert (worst["attribute"], worst["group"], worst["positives"]) == ("age", "75 and over", 50)
    assert worst["sensitivity"]["low"] <= worst["sensitivity"]["value"] <= worst["sensitivity"]["high"]
    assert metrics["subgroups"]["groups"]["age"]["75 and over"]["sensitivity"]["value"] < 0.2
    assert metrics["shortcuts"]["lesion alone"]["auroc"]["value"] == metrics["auroc"]["macro"]["value"]
    assert metrics["prediction_sets"]["all"]["coverage"]["value"] == 1


def test_what_speaks_for_the_class_stays_lit() -> None:
    image = np.full((80, 80, 3), 200, np.uint8)
    activation = np.full((4, 4), -1.0)
    activation[0, 0] = 5
    lit = overlay(image, activation)
    assert lit[2, 2].tolist() == [200, 200, 200]
    assert lit[60, 60].tolist() == [50, 50, 50]
    assert overlay(image, -np.ones((4, 4)))[0, 0].tolist() == [50, 50, 50], "nothing speaks for it"


def test_the_surest_false_alarms_are_shown_highest_first() -> None:
    alarms = most_confident_alarms(evaluated(), POINT, list(table()["image_id"]), look)
    assert [(alarm.image_id, alarm.score) for alarm in alarms] == [("image-4", 0.7)]


def test_images_in_which_no_lesion_is_found_count_neither_way_among_shortcuts() -> None:
    melanoma = np.array([0.05, 0.1, 0.2, 0.4, 0.7, 0.9])
    looked, probed = seen(np.stack([melanoma, 1 - melanoma], axis=1))
    probed.appearance.loc[0, "lesion_share"] = 0.0
    nothing = replace(probed, inside=np.full(6, np.nan))
    evaluation = evaluation_of(
        contract(),
        table()[:6],
        looked,
        nothing,
        is_external=False,
        draws=100,
        rng=np.random.default_rng(0),
        prevalence={},
    )
    assert evaluation.outlined == (0, 5, 1)
    assert evaluation.looks["inside"].value is None, "nothing speaks for any class"
