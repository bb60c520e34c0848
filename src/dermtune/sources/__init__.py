"""Sources of dermoscopic images: one file a source, all giving the same list of SourceImage.

A source only lists what there is. Reading and checking every image, grouping, splitting and
packing are ingest's work and the same for all sources.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermtune.table import Split  # pandas would be loaded in each process that looks at images


@dataclass(frozen=True)
class SourceImage:
    """One image as its source describes it; the bytes are read only when `content` is called."""

    image_id: str
    """Unique within the source."""
    lesion_id: str
    """Images of one lesion share it; they never part in a split. Unique within the source."""
    label: str
    """The source's own word for the diagnosis (dermtune.labels knows many); empty: none."""
    path: str
    """Where the file is, relative to the source's root; a name for people and error messages."""
    content: Callable[[], bytes]
    """Gives the original file's bytes; picklable, so that worker processes can call it."""
    patient_id: str | None = None
    """Images of one patient share it, where the source knows."""
    age: float | None = None
    """In years, as the source says; ingest takes impossible ones for unknown."""
    sex: str | None = None
    """`female` or `male`, where known."""
    site: str | None = None
    """Anatomical site, such as `back`."""
    dx_type: str | None = None
    """How the diagnosis was confirmed: `histo`, `follow_up`, `consensus`, `confocal`."""
    skin_tone: str | None = None
    """Fitzpatrick's type, `I` to `VI`, where the source gives it."""
    mask: Callable[[], bytes] | None = None
    """Gives an image file of the same view, light where the lesion is; where the source has one."""
    split: "Split | None" = None
    """The source's own split, where it has one."""
    license: str | None = None
    """Under which the image may be used, such as `CC-BY-NC`."""
    attribution: str | None = None
    """Whom to name."""
    source: str = ""
    """Which source it is of; `list_images` says it."""
