from dermtune.labels import CLASSES, lesion_class


def test_the_classes_of_ham10000_and_ph2_are_known() -> None:
    assert {known.name for known in CLASSES} == {
        "akiec", "atypical", "bcc", "bkl", "df", "mel", "nv", "vasc",
    }  # fmt: skip
    assert {known.name for known in CLASSES if known.malignant} == {"akiec", "bcc", "mel"}


def test_an_unknown_name_is_a_class_of_its_own_not_known_to_be_malignant() -> None:
    known = lesion_class("scc")
    assert (known.name, known.title, known.malignant) == ("scc", "scc", False)
    assert lesion_class("mel").title == "Melanoma"
