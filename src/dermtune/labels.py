"""The classes of skin lesions: their names, which are malignant, and what data sets call them."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

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
    LesionClass("ak", "Actinic keratosis", malignant=True, snomed="201101007"),
    LesionClass("akiec", "Actinic keratosis / Bowen's disease", malignant=True, snomed="201101007"),
    LesionClass("atypical", "Atypical (dysplastic) nevus", malignant=False),
    LesionClass("bcc", "Basal cell carcinoma", malignant=True, snomed="254701007"),
    LesionClass("bkl", "Benign keratosis", malignant=False),
    LesionClass("df", "Dermatofibroma", malignant=False),
    LesionClass("mel", "Melanoma", malignant=True, snomed="93655004"),
    LesionClass("not_mel", "No melanoma (it may be another cancer)", malignant=False),
    LesionClass("nv", "Melanocytic nevus", malignant=False, snomed="400096001"),
    LesionClass("scc", "Squamous cell carcinoma", malignant=True),
    LesionClass("vasc", "Vascular lesion", malignant=False, snomed="400210000"),
)


NAMES = tuple(known.name for known in CLASSES)

_DOUBT = re.compile(r"[^\w\s,.;:'\u2019()/&-]|[-(]\s*$|\(\s*\)")
"""What makes of a diagnosis a question, such as its mark."""

Task = Literal["as_labelled", "ham10000", "isic2019", "melanoma"]
_AS_THEY_ARE = MappingProxyType({name: name for name in NAMES})
_HAM10000 = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
_ISIC2019 = ("ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc")
TASKS: Mapping[Task, Mapping[str, str]] = MappingProxyType(
    {
        "as_labelled": _AS_THEY_ARE,
        # HAM10000 has no squamous cell carcinoma that is invasive: such an image is of none of its classes.
        "ham10000": {name: name for name in _HAM10000} | {"ak": "akiec", "atypical": "nv"},
        # Bowen's disease is carcinoma in situ; ISIC 2019 took HAM10000's akiec for actinic keratosis.
        "isic2019": {name: name for name in _ISIC2019} | {"akiec": "ak", "atypical": "nv"},
        "melanoma": {name: "mel" if name == "mel" else "not_mel" for name in NAMES},
    }
)
"""From a class to that of a task; a class that is not named is none of the task's."""


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


def class_of(label: str) -> str | None:
    """The class that a data set's own label means, by name, title, SNOMED CT code or synonym; None: unknown.

    Case and usual punctuation do not count. Nothing is guessed: of "nevus, cannot exclude melanoma", the
    first word would be a dangerous guess, and "nevus?" is a question.
    """
    return None if _DOUBT.search(label) else _meanings().get(_plain(label))


def _plain(label: str) -> str:
    return re.sub(r"[\W_]+", " ", label.casefold()).strip()


@cache
def _meanings() -> Mapping[str, str]:
    """synonyms.csv holds what HAM10000, PH2, Derm7pt, PAD-UFES-20 and the ISIC Archive call the classes."""
    found: dict[str, str] = {}
    for known in CLASSES:
        for word in (known.name, known.title, known.snomed or ""):
            found.setdefault(_plain(word), known.name)
    text = files("dermtune").joinpath("synonyms.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        found[_plain(row["word"])] = require_class(row["class"])
    return MappingProxyType({word: name for word, name in found.items() if word})
