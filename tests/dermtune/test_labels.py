import csv
from importlib.resources import files

import pytest

from dermtune.errors import DataError
from dermtune.labels import CLASSES, NAMES, TASKS, class_of, lesion_class, require_class


def test_the_classes_are_known_with_what_is_malignant() -> None:
    assert NAMES == ("ak", "akiec", "atypical", "bcc", "bkl", "df", "mel", "not_mel", "nv", "scc", "vasc")
    assert {known.name for known in CLASSES if known.malignant} == {"ak", "akiec", "bcc", "mel", "scc"}


def test_a_class_is_found_by_its_name() -> None:
    assert lesion_class("mel").title == "Melanoma"
    assert require_class("mel") == "mel"


@pytest.mark.parametrize("name", ["melanoma", "Mel", "", "macro"])
def test_it_is_not_guessed_whether_an_unknown_name_is_malignant(name: str) -> None:
    with pytest.raises(DataError, match="is unknown; the classes are ak, akiec, atypical"):
        lesion_class(name)
    with pytest.raises(ValueError, match="is no class; the classes are ak, akiec, atypical"):
        require_class(name)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("mel", "mel"),
        ("MEL", "mel"),
        ("Melanoma, NOS", "mel"),
        ("melanoma_in_situ", "mel"),
        ("372244006", "mel"),
        ("93655004", "mel"),
        ("Common Nevus", "nv"),
        ("NEV", "nv"),
        ("Atypical Nevus", "atypical"),
        ("seborrheic keratosis", "bkl"),
        ("ACK", "ak"),
        ("AKIEC", "akiec"),
        ("Bowen's disease", "akiec"),
        ("SCC", "scc"),
        ("Basal cell carcinoma", "bcc"),
        ("hemangioma", "vasc"),
        ("UNK", None),
        ("benign", None),
        ("", None),
        ("!", None),
    ],
)
def test_what_data_sets_call_a_class_is_understood(label: str, name: str | None) -> None:
    assert class_of(label) == name


def test_no_word_means_two_classes() -> None:
    text = files("dermtune").joinpath("synonyms.csv").read_text(encoding="utf-8")
    words = [(row["word"], row["class"]) for row in csv.DictReader(text.splitlines())]
    words += [(word, known.name) for known in CLASSES for word in (known.name, known.title)]
    assert [(word, name, class_of(word)) for word, name in words if class_of(word) != name] == []


@pytest.mark.parametrize(
    "label",
    [
        "nevus, cannot exclude melanoma",
        "no melanoma",
        "Nevus sebaceus",
        "nevus?",
        "nv ?",
        "nevus (?)",
        "MEL-",
        "≠ nevus",
        "<nevus>",
        "!mel",
    ],
)
def test_nothing_is_guessed_from_a_part_of_a_label(label: str) -> None:
    assert class_of(label) is None


@pytest.mark.parametrize("task", ["ham10000", "isic2019", "melanoma"])
def test_no_task_takes_something_malignant_for_benign_but_where_its_name_says_so(task: str) -> None:
    for name, meaning in TASKS[task].items():  # type: ignore[index]
        if meaning != "not_mel":
            assert lesion_class(meaning).malignant == lesion_class(name).malignant


def test_the_tasks_have_the_classes_of_their_data_sets() -> None:
    assert set(TASKS["ham10000"].values()) == {"akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"}
    assert set(TASKS["isic2019"].values()) == {"ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc"}
    assert set(TASKS["melanoma"].values()) == {"mel", "not_mel"}
    assert "scc" not in TASKS["ham10000"]
