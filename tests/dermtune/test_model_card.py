"""The card says what the manifest says, in words, under the headings that readers expect."""

from dataclasses import replace

import pytest

from dermtune.model_card import BLANK, card_page, describe_metric, model_card
from dermtune_bundle import Manifest

HEADINGS = (  # Mitchell et al. 2019, in their order
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
)


def test_the_headings_are_those_of_the_paper_and_how_to_use(tiny_manifest: Manifest) -> None:
    lines = model_card(tiny_manifest).splitlines()
    headings = [line[3:] for line in lines if line.startswith("## ")]
    assert headings == [*HEADINGS, "What TRIPOD+AI and CLAIM ask for", "How to use"]
    assert tiny_manifest.notice in lines[2]


def test_classes_counts_metrics_and_thresholds_are_in_it(tiny_manifest: Manifest) -> None:
    metrics = tiny_manifest.metrics | {"n_images": 4, "n_lesions": 2}
    card = model_card(replace(tiny_manifest, metrics=metrics))
    assert "| Melanoma | `mel` | 93655004 | yes |" in card
    assert "| images | train |" in card
    assert "| mel | 7 |" in card
    assert "| all | 16 |" in card
    assert "It holds 4 images of 2 lesions." in card
    assert "How large the network is was not recorded." in card
    assert "| auroc.macro | 0.900 (95% interval 0.800 to 0.950) |" in card
    assert "probability of `mel` at least 0.500 | sensitivity >= 0.90 on validation | 0.920 | 0.810 |" in card
    assert "| backbone.name | `mean colour` |" in card
    assert "images.train" not in card
    assert "It holds 4 images of 2 lesions." in card


def test_what_was_not_recorded_or_is_undefined_is_said(tiny_manifest: Manifest) -> None:
    metrics = {"auroc": {"macro": {"value": None, "low": None, "high": None, "reason": "one class"}}}
    card = model_card(replace(tiny_manifest, metrics=metrics, lineage={"seed": "a|b"}))
    assert "Its size was not recorded." in card
    assert "How many images there were was not recorded." in card
    assert "| auroc.macro | undefined (one class) |" in card
    assert "`a\\|b`" in card


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("synthetic", "**The numbers here say nothing about real lesions.**"),
        ("ham10000", "Source: ham10000."),
        (None, "Where the images came from was not recorded."),
    ],
)
def test_the_source_is_told_and_a_synthetic_one_most_of_all(
    tiny_manifest: Manifest, source: str | None, sentence: str
) -> None:
    assert sentence in model_card(replace(tiny_manifest, lineage={"source": source}))


def test_a_metric_without_an_interval_says_so() -> None:
    assert describe_metric({"value": 0.5, "low": None, "high": None}) == "0.500 (no interval)"


def test_what_only_a_person_can_answer_is_blank_and_marked(tiny_manifest: Manifest) -> None:
    card = model_card(tiny_manifest)
    assert card.count(BLANK) >= 10
    assert f"| Consent, ethics approval, data protection | {BLANK} |" in card


def test_the_worst_subgroup_is_named(tiny_manifest: Manifest) -> None:
    share = {"value": 0.8, "low": 0.7, "high": 0.9}
    unknown = {"value": None, "low": None, "high": None, "reason": "too few lesions to judge"}
    groups = {
        "sex": {
            "female": {"images": 40, "sensitivity": share, "specificity": share},
            "male": {"images": 3, "sensitivity": unknown, "specificity": unknown},
        }
    }
    found = {
        "operating_point": "rule-out",
        "worst": {"attribute": "sex", "group": "female", "positives": 12, "sensitivity": share},
        "groups": groups,
    }
    card = model_card(replace(tiny_manifest, metrics=tiny_manifest.metrics | {"subgroups": found}))
    said = "that of sex: female, 0.800 (95% interval 0.700 to 0.900), n = 12 lesions."
    assert said in card
    assert "| sex: male | 3 | undefined (too few lesions to judge) |" in card
    assert "subgroups.groups" not in card


def test_the_page_says_the_same_and_hostile_text_stays_text(tiny_manifest: Manifest) -> None:
    hostile = "<script>alert(1)</script>"
    card = model_card(replace(tiny_manifest, lineage={"seed": hostile}))
    page = card_page(card, title=hostile)
    assert "<script" not in page
    assert "<h2>Ethical considerations</h2>" in page
    assert "<td>Melanoma</td>" in page
    assert "a person is to fill this in" in page


def test_what_a_source_calls_a_site_is_no_link_and_breaks_no_table(tiny_manifest: Manifest) -> None:
    hostile = "back ![x](https://x.example) [sign in](https://x.example) <b>\n| z"
    unknown = {"value": None, "low": None, "high": None, "reason": "too few"}
    groups = {"site": {hostile: {"images": 3, "sensitivity": unknown, "specificity": unknown}}}
    found = {"operating_point": "mel", "worst": None, "groups": groups}
    card = model_card(replace(tiny_manifest, metrics=tiny_manifest.metrics | {"subgroups": found}))
    page = card_page(card, title="x")
    assert "<a " not in page
    assert "<img" not in page
    assert "sign in" in page
    (row,) = [line for line in card.splitlines() if "sign in" in line]
    assert row.endswith("| 3 | undefined (too few) | undefined (too few) |")


def test_the_prevalence_behind_predictive_values_and_how_often_it_abstains_are_said(
    tiny_manifest: Manifest,
) -> None:
    share = {"value": 0.054, "low": 0.042, "high": 0.069}
    measured = {"prevalence": {"mel": 0.03}, "abstention": {"any of these": share}}
    card = " ".join(model_card(replace(tiny_manifest, metrics=tiny_manifest.metrics | measured)).split())
    assert "Predictive values at prevalence are for where 3.0% of the lesions are mel." in card
    assert "on test it does on 0.054 (95% interval 0.042 to 0.069)." in card
