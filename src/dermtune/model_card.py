"""The model card that a bundle carries: what the model is for, what it is not, and how well it was measured.

Source: Mitchell et al. 2019, Model Cards for Model Reporting, https://doi.org/10.1145/3287560.3287596; its
headings, in its order, and then how to use it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dermtune_bundle.manifest import Manifest, OperatingPoint, flatten

Metric = Mapping[str, Any]
"""`value`, `low` and `high`; where `value` is None, `reason` says why it is undefined."""


def model_card(manifest: Manifest) -> str:
    """The card, in Markdown, of what a bundle's manifest says.

    Counts of images are read from `images` in lineage (split → class → how many), and the data's origin from
    `source` there.
    """
    counts = manifest.lineage.get("images")
    return _CARD.format(
        name=manifest.name,
        notice=manifest.notice,
        classes=_table(
            ["class", "name", "counted as malignant", "decision weight"],
            [
                [
                    known.title,
                    f"`{known.name}`",
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
                if name.split(".")[0] != "images"
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
            [[name, describe_metric(metric)] for name, metric in _metrics(manifest.metrics)],
        ),
        method=manifest.calibration.method,
        nll_before=_number(manifest.calibration.nll_before),
        nll_after=_number(manifest.calibration.nll_after),
    )


def describe_metric(metric: Metric) -> str:
    """A metric with its interval in words: `0.912 (95% interval 0.880 to 0.940)`."""
    if metric.get("value") is None:
        return f"undefined ({metric.get('reason') or 'no reason given'})"
    if metric.get("low") is None or metric.get("high") is None:
        return f"{_number(metric['value'])} (no interval)"
    return f"{_number(metric['value'])} (95% interval {_number(metric['low'])} to {_number(metric['high'])})"


def _metrics(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Metric]]:
    """Every metric of a nested mapping, by dotted name; what is no metric is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping) and "value" in value:
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from _metrics(value, f"{prefix}{key}.")


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
    """A Markdown table; a bar in a cell must not end it."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


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
images were selected. The numbers below are averages over the test split; a group that is rare in it may fare
much worse, and is not judged here.

## Metrics

The area under the ROC curve (one class against the rest, and their mean), balanced accuracy, average
precision, sensitivity and specificity. Each with a 95% interval from bootstrap draws of whole lesions, as
images of one lesion resemble each other. What the test split cannot answer is written as undefined.

Decisions come from thresholds that were chosen on the validation split; sensitivity and specificity in this
table are those of validation, and so look somewhat better than on new images:

{points}

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

Calibration: {method}, fitted on the validation split; negative log-likelihood there {nll_before} before and
{nll_after} after.

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

## How to use

    pip install dermtune
    dermtune verify BUNDLE
    dermtune predict BUNDLE lesion.jpg
    dermtune predict BUNDLE folder/ --format jsonl --output answers.jsonl

where BUNDLE is the folder that holds this file. `SHA256SUMS` lists every file's checksum; `dermtune` checks
them before each use, and so does `sha256sum --check SHA256SUMS`.
"""
