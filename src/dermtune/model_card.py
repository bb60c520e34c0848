"""The model card that a bundle carries: what the model is for, what it is not, and how well it was measured.

Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://doi.org/10.1145/3287560.3287596; its
headings, in its order; then what TRIPOD+AI (Collins et al. 2024, https://doi.org/10.1136/bmj-2023-078378) and
CLAIM (Tejani et al. 2024, https://doi.org/10.1148/ryai.240300) ask for beyond them; and how to use it. What
only a person can answer is left blank, and marked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt

from dermtune.labels import NAMES, lesion_class
from dermtune.page import amount, render_page
from dermtune_bundle.manifest import Limits, Manifest, OperatingPoint, Quantization, flatten

BLANK = "**[a person is to fill this in]**"
_GROUP_METRICS = ("sensitivity", "specificity")
Metric = Mapping[str, Any]
"""`value`, `low` and `high`; where `value` is None, `reason` says why it is undefined."""


def model_card(manifest: Manifest, *, cost: Mapping[str, Any] | None = None) -> str:
    """The card, in Markdown, of what a bundle's manifest says.

    Counts of images are read from `images` in lineage (split → class → how many), the data's origin from
    `source` there, and how large the network is from `size`.

    Args:
        manifest: of the bundle.
        cost: what `dermtune study cost` measured of this model.
    """
    counts = manifest.lineage.get("images")
    return _CARD.format(
        name=manifest.name,
        notice=manifest.notice,
        classes=_table(
            ["class", "name", "SNOMED CT", "counted as malignant", "decision weight"],
            [
                [
                    known.title,
                    f"`{known.name}`",
                    (lesion_class(known.name).snomed if known.name in NAMES else None) or "",
                    "yes" if known.malignant else "no",
                    f"{known.decision_weight:.3g}",
                ]
                for known in manifest.classes
            ],
        ),
        count=len(manifest.classes),
        size=manifest.input.size,
        resize=manifest.input.resize,
        lineage=_table(
            ["made from", ""],
            [
                [name, f"`{value}`"]
                for name, value in flatten(manifest.lineage)
                if name.split(".")[0] not in {"images", "size"}
            ],
        ),
        points=_table(
            ["decision", "says yes from", "chosen for", "sensitivity", "specificity"],
            [_point_row(point) for point in manifest.operating_points],
        ),
        test_size=_test_size(manifest.metrics),
        source=_source(manifest.lineage.get("source")),
        training=_counts(counts) if counts else "How many images there were was not recorded.",
        metrics=_table(
            ["metric", "on the test split"],
            [
                [name, describe_metric(metric)]
                for name, metric in each_metric(_without_groups(manifest.metrics))
            ],
        ),
        subgroups=_subgroups(manifest.metrics.get("subgroups")),
        blank=BLANK,
        coverage=manifest.coverage,
        false_alarms=manifest.limits.false_alarms,
        abstains=_abstains(manifest.metrics),
        prevalence=_prevalence(manifest.metrics),
        seed=manifest.lineage.get("seed", "not recorded"),
        precision=_precision(manifest.quantization),
        network=_size(manifest.lineage.get("size")),
        cost=_cost(cost),
        method=manifest.calibration.method,
        nll_before=_number(manifest.calibration.nll_before),
        nll_after=_number(manifest.calibration.nll_after),
    )


def card_page(card: str, *, title: str) -> str:
    """The card as one HTML page that needs nothing else, for those who read no Markdown."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(card)
    return render_page("model_card.html", {"title": title, "body": body})


def describe_metric(metric: Metric) -> str:
    """A metric with its interval in words: `0.912 (95% interval 0.880 to 0.940)`."""
    if metric.get("value") is None:
        return f"undefined ({metric.get('reason') or 'no reason given'})"
    if metric.get("low") is None or metric.get("high") is None:
        return f"{_number(metric['value'])} (no interval)"
    return f"{_number(metric['value'])} (95% interval {_number(metric['low'])} to {_number(metric['high'])})"


def each_metric(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Metric]]:
    """Every metric of a nested mapping, by dotted name; what is no metric is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping) and "value" in value:
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from each_metric(value, f"{prefix}{key}.")


def _without_groups(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "subgroups"}


def _subgroups(found: Mapping[str, Any] | None) -> str:
    """The worst group in a sentence, then all of them."""
    if not found:
        return "Subgroups were not measured."
    worst = found.get("worst")
    said = "No group is large enough to be compared with another."
    if worst:
        said = (
            f"The lowest sensitivity of those large enough to judge is that of {worst['attribute']}:"
            f" {worst['group']}, {describe_metric(worst['sensitivity'])}, n = {worst['positives']} lesions."
        )
    rows = [
        [
            f"{attribute}: {group}",
            str(row["images"]),
            *(describe_metric(row[name]) for name in _GROUP_METRICS),
        ]
        for attribute, groups in found["groups"].items()
        for group, row in groups.items()
    ]
    table = _table(["group", "images", *_GROUP_METRICS], rows)
    return f"At the operating point `{found['operating_point']}`. {said}\n\n{table}"


def _abstains(metrics: Mapping[str, Any]) -> str:
    found = metrics.get("abstention", {}).get(Limits.ANY)
    return describe_metric(found) if found else "a share that was not measured"


def _prevalence(metrics: Mapping[str, Any]) -> str:
    stated = metrics.get("prevalence") or {}
    shares = ", ".join(f"{share:.1%} of the lesions are {target}" for target, share in stated.items())
    return f"Predictive values at prevalence are for where {shares}." if shares else ""


def _precision(quantization: Quantization | None) -> str:
    if quantization is None:
        return "The graph computes in float32."
    before, after = _number(quantization.auroc_before), _number(quantization.auroc_after)
    mean, largest = _number(quantization.mean_difference), _number(quantization.largest_difference)
    return (
        "The graph computes in 8-bit integers, and all numbers here are its own. On the validation split its "
        f"AUROC (macro) is {after}, and was {before} in float32; a probability moved by {mean} on average "
        f"and by {largest} at most."
    )


def _size(size: Mapping[str, int] | None) -> str:
    if not size:
        return "How large the network is was not recorded."
    return (
        f"The network has {amount(size['parameters'])} parameters, {amount(size['trained'])} of them trained"
        f" on these images, and takes {amount(size['multiply_adds'])} multiply-adds for an image,"
        f" {amount(size['trained_multiply_adds'])} of them in its trained part."
    )


def _cost(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return "What energy it took was not measured (`dermtune study cost` does)."
    rows = [
        [stage, f"{took['seconds']:.0f}", f"{took['joules'] / 3600:.3g}", f"{took['grams']:.3g}"]
        for stage, took in [*cost["stages"].items(), ("all", cost["total"])]
    ]
    point = cost["joules_per_point"]
    said = (
        ""
        if point is None
        else f" It took {amount(point)} joules for each hundredth of AUROC above guessing."
    )
    table = _table(["stage", "seconds", "watt hours", "grams of CO2e"], rows)
    return (
        f"{table}\n\nThe energy is codecarbon's estimate for the machine; the CO2 equivalents are by the"
        f" electricity of {cost['country']}.{said}"
    )


def _source(source: object) -> str:
    if source == "synthetic":
        return "Synthetic: a program drew every image. **The numbers here say nothing about real lesions.**"
    return f"Source: {source}." if source else "Where the images came from was not recorded."


def _test_size(metrics: Mapping[str, Any]) -> str:
    if "n_images" not in metrics:
        return "Its size was not recorded."
    return f"It holds {metrics['n_images']} images of {metrics.get('n_lesions', '?')} lesions."


def _counts(images: Mapping[str, Mapping[str, int]]) -> str:
    classes = sorted({name for by_class in images.values() for name in by_class})
    rows = [[name, *(str(by_class.get(name, 0)) for by_class in images.values())] for name in classes]
    total = ["all", *(str(sum(by_class.values())) for by_class in images.values())]
    return _table(["images", *images], [*rows, total])


def _point_row(point: OperatingPoint) -> list[str]:
    threshold = f"probability of `{point.target}` at least {_number(point.threshold)}"
    return [f"`{point.name}`", threshold, point.goal, _number(point.sensitivity), _number(point.specificity)]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, whose cells are plain text: what a source calls a site must not become a link."""
    lines = [[_plain(cell) for cell in line] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(cell: str) -> str:
    text = " ".join(cell.split())
    if len(text) > 1 and text[0] == text[-1] == "`":  # code, in which nothing is a link
        inner = text[1:-1].replace("`", "'").replace("|", "\\|")
        return f"`{inner}`"
    return re.sub(r"([\\|\[\]<!*])", r"\\\1", text)


_CARD = """\
# Model card: {name}

**{notice}**

## Model details

A neural network, fine-tuned on dermoscopic images by dermtune from the backbone below, as one ONNX graph. It
reads an RGB image of any size, resizes it to {size} x {size} pixels ({resize}), and gives one calibrated
probability for each of {count} classes, an embedding and an activation map.

{classes}

{lineage}

## Intended use

Research on dermoscopic images of single skin lesions, retrospectively or beside unaltered care; comparison
with other models; teaching.

**Not for** diagnosis, triage or any decision on a person's treatment; clinical (non-dermoscopic) photographs,
whole-body images, histology or any other kind of image; lesions of the nails, mucosa or scalp unless the
training data held them; classes other than those above: the model must choose among them, and gives a
confident answer to an image that shows none of them.

## Factors

Results are known to depend on skin tone, age, body site, dermatoscope and light, hair and gel, and on how the
images were selected. A group that is rare in the test split may fare much worse, and is not judged here.

{subgroups}

## Metrics

The area under the ROC curve (one class against the rest, and their mean), balanced accuracy, average
precision, sensitivity and specificity. Each with a 95% interval from bootstrap draws of whole lesions, as
images of one lesion resemble each other. What the test split cannot answer is written as undefined.

Decisions come from thresholds that were chosen on the validation split; sensitivity and specificity in this
table are those of validation, and so look somewhat better than on new images:

{points}

Beside its answer the model gives the set of classes that cannot be ruled out, which is to hold the right one
in {coverage:.0%} of each class's images, and abstains on images unlike those it knows, blurred, too dark or
too bright: its limits were chosen so that it does on {false_alarms:.0%} of images such as those of
validation; on test it does on {abstains}.

## Evaluation data

The test split of the same source as the training data: whole lesions (and patients, where known) that neither
training nor the choice of thresholds has seen. It is read once, through this very graph, from the original
files. {test_size} It is no external validation: another clinic's images were not looked at.

## Training data

{source}

{training}

Labels are the source's. How they were confirmed (histology, follow-up, consensus) differs by source and
class.

## Quantitative analyses

{metrics}

{prevalence}

{precision}

Calibration: {method}, fitted on the validation split; negative log-likelihood there {nll_before} before and
{nll_after} after.

### Cost

{network}

{cost}

## Ethical considerations

A missed melanoma can cost a life, and a false alarm costs an excision and worry; the thresholds above trade
one for the other and were chosen by an engineer, not by the patients. Public dermoscopic collections show few
people with dark skin: expect less there, and measure it before any study.

## Caveats and recommendations

Measure it on your own images before you rely on any number above. Probabilities are those of the source, in
which classes may be far more frequent than where you work, or far rarer. The one class that is named is not
always the most probable one: it is that with the largest probability times decision weight, so that rare
classes are named at all. An activation map shows what moved the model, not why a lesion is malignant. If the
images or the dermatoscope change, measure again.

## What TRIPOD+AI and CLAIM ask for

| item | answer |
| --- | --- |
| Clinical problem, and place in the pathway | {blank} |
| Setting and dates in which the images were taken | {blank} |
| Who was eligible; who was left out | {blank} |
| Reference standard, and who set it | by `dx_type` of the source, where given; {blank} |
| Consent, ethics approval, data protection | {blank} |
| Sample size, and why it is enough | see Training data; {blank} |
| Missing data | images without a readable file, a label or a lesion id were set aside, with reasons |
| Partitions | by lesion, and by patient where known; no lesion is in two |
| Model, initialisation, training, selection | see Model details; seed {seed} |
| Software | see `versions` in Model details |
| Performance with intervals; calibration; subgroups | see Quantitative analyses and Factors |
| Failure analysis | the evaluation report shows the surest mistakes |
| External validation | {blank} |
| Fairness: what was done about differences between groups | {blank} |
| Protocol, registration | {blank} |
| Funding, conflicts of interest | {blank} |
| Patients' and public involvement | {blank} |
| Who answers for the model, and until when it may be used | {blank} |

## How to use

    pip install dermtune
    dermtune verify BUNDLE
    dermtune predict BUNDLE lesion.jpg
    dermtune predict BUNDLE folder/ --format jsonl --output answers.jsonl

where BUNDLE is the folder that holds this file. `SHA256SUMS` lists every file's checksum; `dermtune` checks
them before each use, and so does `sha256sum --check SHA256SUMS`.
"""
