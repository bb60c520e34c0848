import pytest

from dermtune.errors import DataError
from dermtune.labels import CLASSES, lesion_class, require_class


def test_the_classes_of_ham10000_and_ph2_are_known() -> None:
    assert {known.name for known in CLASSES} == {
        "akiec", "atypical", "bcc", "bkl", "df", "mel", "nv", "vasc",
    }  # fmt: skip
    assert {known.name for known in CLASSES if known.malignant} == {"akiec", "bcc", "mel"}


def test_a_class_is_found_by_its_name() -> None:
    assert lesion_class("mel").title == "Melanoma"
    assert require_class("mel") == "mel"


@pytest.mark.parametrize("name", ["melanoma", "Mel", "", "macro"])
def test_it_is_not_guessed_whether_an_unknown_name_is_malignant(name: str) -> None:
    with pytest.raises(DataError, match="is unknown; the classes are akiec, atypical"):
        lesion_class(name)
    with pytest.raises(ValueError, match="is no class; the classes are akiec, atypical"):
        require_class(name)
