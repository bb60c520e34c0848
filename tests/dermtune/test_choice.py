from dataclasses import replace

import pytest

from dermtune.choice import choose
from dermtune.errors import ConfigError
from dermtune.labels import Task
from dermtune.quality import check_listing
from dermtune.sources import SourceImage


def image(number: int, label: str, licence: str | None = None) -> SourceImage:
    return SourceImage(f"I{number}", f"L{number}", label, f"I{number}.jpg", bytes, license=licence)


def chosen(
    *labels: str,
    classes: Task = "as_labelled",
    label_map: dict[str, str] | None = None,
    drops: bool = False,
    licenses: tuple[str, ...] = (),
) -> tuple[list[str], list[str | None]]:
    images = [image(number, label) for number, label in enumerate(labels, start=1)]
    found, reasons = choose(
        images, classes=classes, label_map=label_map or {}, drops=drops, licenses=licenses
    )
    return [one.label for one in found], reasons


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ("as_labelled", ["mel", "atypical", "ak", "scc"]),
        ("isic2019", ["mel", "nv", "ak", "scc"]),
        ("melanoma", ["mel", "not_mel", "not_mel", "not_mel"]),
    ],
)
def test_labels_become_the_tasks_classes(classes: Task, expected: list[str]) -> None:
    labels = ("Melanoma, NOS", "Dysplastic nevus", "ACK", "SCC")
    assert chosen(*labels, classes=classes) == (expected, [None] * 4)


def test_a_map_goes_before_what_is_known() -> None:
    labels, _ = chosen("ACK", "mystery", label_map={"ACK": "akiec", "mystery": "bcc"})
    assert labels == ["akiec", "bcc"]


def test_a_label_of_no_class_is_an_error_that_names_the_row() -> None:
    with pytest.raises(
        ConfigError, match=r"1 labels mean none of the classes: 'UNK' \(row 2, I2\); map them"
    ):
        chosen("mel", "UNK", "", "UNK")
    with pytest.raises(ConfigError, match=r"'SCC' \(row 1, I1\)"):
        chosen("SCC", classes="ham10000")


def test_or_it_is_dropped_and_said_so() -> None:
    labels, reasons = chosen("mel", "UNK", "", drops=True)
    assert labels == ["mel", "UNK", ""]
    assert reasons == [None, "left out by params.yaml: its label 'UNK' is none of the classes", None]


def test_licences_are_compared_without_version_and_case() -> None:
    licences = ["CC-BY-NC-4.0", "cc by-nc", "CC-BY", "CC-0", None, "CC0 1.0"]
    images = [image(number, "mel", licence) for number, licence in enumerate(licences)]
    found, reasons = choose(
        images, classes="as_labelled", label_map={}, drops=False, licenses=["CC-BY-NC", "CC-0"]
    )
    assert [reason is None for reason in reasons] == [True, True, False, True, False, True]
    assert reasons[2] == "left out by params.yaml: its licence is CC-BY"
    assert reasons[4] == "left out by params.yaml: its licence is not said"
    assert found[2].label == "mel", "or a diagnosis of its lesion would be forgotten"


def test_a_map_of_a_label_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the source has no label 'Mel'; its labels are mel, nv"):
        chosen("mel", "nv", "", label_map={"Mel": "mel"})


def test_of_two_diagnoses_of_a_lesion_none_is_forgotten_by_leaving_it_out() -> None:
    images = [image(1, "nevus", "CC-0"), image(2, "melanoma", "CC-BY-NC"), image(3, "nevus", "CC-0")]
    one_lesion = [replace(images[0], lesion_id="L"), replace(images[1], lesion_id="L"), images[2]]
    found, left_out = choose(one_lesion, classes="as_labelled", label_map={}, drops=False, licenses=["CC-0"])
    reasons = check_listing(found, left_out)
    assert reasons == [
        "its lesion has several diagnoses: mel, nv",
        "left out by params.yaml: its licence is CC-BY-NC",
        None,
    ]
