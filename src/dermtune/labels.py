"""The classes of skin lesions: their names, and which are malignant."""

from dataclasses import dataclass

from dermtune.errors import DataError


@dataclass(frozen=True)
class LesionClass:
    """A diagnosis that a model can give."""

    name: str
    """Short name, as in HAM10000; what labels, metrics and bundles use."""
    title: str
    """Name for people."""
    malignant: bool
    """Malignant or precancerous: missing it can cost a life."""
    snomed: str | None = None
    """SNOMED CT code of the diagnosis, or of its most frequent one; None where none could be confirmed."""


CLASSES = (
    LesionClass("akiec", "Actinic keratosis / Bowen's disease", malignant=True, snomed="201101007"),
    LesionClass("atypical", "Atypical (dysplastic) nevus", malignant=False),
    LesionClass("bcc", "Basal cell carcinoma", malignant=True, snomed="254701007"),
    LesionClass("bkl", "Benign keratosis", malignant=False),
    LesionClass("df", "Dermatofibroma", malignant=False),
    LesionClass("mel", "Melanoma", malignant=True, snomed="93655004"),
    LesionClass("nv", "Melanocytic nevus", malignant=False, snomed="400096001"),
    LesionClass("vasc", "Vascular lesion", malignant=False, snomed="400210000"),
)


NAMES = tuple(known.name for known in CLASSES)


def lesion_class(name: str) -> LesionClass:
    """Look a class up.

    Raises:
        DataError: there is no such class. It is not guessed whether a name means something malignant.
    """
    found = next((known for known in CLASSES if known.name == name), None)
    if found is None:
        raise DataError(f"class {name!r} is unknown; the classes are {', '.join(NAMES)}")
    return found


def require_class(name: str) -> str:
    """Give a class's name back, for use in a config.

    Raises:
        ValueError: there is no such class.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is no class; the classes are {', '.join(NAMES)}")
    return name
