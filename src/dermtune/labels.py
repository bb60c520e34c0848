"""The classes of skin lesions: their names, and which are malignant."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LesionClass:
    """A diagnosis that a model can give."""

    name: str
    """Short name, as in HAM10000; what labels, metrics and bundles use."""
    title: str
    """Name for people."""
    malignant: bool
    """Malignant or precancerous: missing it can cost a life."""


CLASSES = (
    LesionClass("akiec", "Actinic keratosis / Bowen's disease", malignant=True),
    LesionClass("atypical", "Atypical (dysplastic) nevus", malignant=False),
    LesionClass("bcc", "Basal cell carcinoma", malignant=True),
    LesionClass("bkl", "Benign keratosis", malignant=False),
    LesionClass("df", "Dermatofibroma", malignant=False),
    LesionClass("mel", "Melanoma", malignant=True),
    LesionClass("nv", "Melanocytic nevus", malignant=False),
    LesionClass("vasc", "Vascular lesion", malignant=False),
)


def lesion_class(name: str) -> LesionClass:
    """Look a class up; a name that the table lacks is a class of its own, not known to be malignant."""
    return next((known for known in CLASSES if known.name == name), LesionClass(name, name, malignant=False))
