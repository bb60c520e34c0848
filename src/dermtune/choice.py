"""Which images a task uses, and as what: classes by label, and licences."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from dermtune.errors import ConfigError
from dermtune.labels import TASKS, Task, class_of
from dermtune.quality import BY_CHOICE
from dermtune.sources import SourceImage
from dermtune.sources.rows import plain_license

_SHOWN = 5  # labels named in one message


def choose(
    images: Sequence[SourceImage],
    *,
    classes: Task,
    label_map: Mapping[str, str],
    drops: bool,
    licenses: Collection[str],
) -> tuple[list[SourceImage], list[str | None]]:
    """Give images the task's classes, and say which of them are left out.

    Args:
        images: with their source's labels.
        classes: the task, of labels.TASKS.
        label_map: from a source's label to a class, before what `labels.class_of` knows.
        drops: are images left out whose label means none of the classes?
        licenses: names of those to use, of any version; none: all.

    Returns:
        The images, and for each the reason why it is left out, or None.

    Raises:
        ConfigError: `label_map` names a label that no image has, such as a misspelt one, or a label means
            none of the classes; names the first rows.
    """
    labels = {image.label for image in images}
    if unknown := sorted(set(label_map) - labels):
        raise ConfigError(
            f"ingest.label_map: the source has no label {', '.join(map(repr, unknown))}; its labels are"
            f" {', '.join(sorted(labels - {''}))}"
        )
    task = TASKS[classes]
    meanings = {label: task.get(label_map.get(label) or class_of(label) or "") for label in labels}
    allowed = {plain_license(name) for name in licenses}
    chosen: list[SourceImage] = []
    reasons: list[str | None] = []
    unmapped: dict[str, str] = {}
    for row, image in enumerate(images, start=1):
        reason, meaning = None, meanings[image.label]
        if allowed and plain_license(image.license or "") not in allowed:
            reason = f"{BY_CHOICE}its licence is {image.license or 'not said'}"
        elif image.label and meaning is None and drops:
            reason = f"{BY_CHOICE}its label {image.label!r:.60} is none of the classes"
        elif image.label and meaning is None:
            unmapped.setdefault(image.label, f"row {row}, {image.image_id}")
        # What is left out keeps its label: of two diagnoses of one lesion, neither may be forgotten.
        chosen.append(replace(image, label=meaning or image.label))
        reasons.append(reason)
    if unmapped:
        shown = "; ".join(f"{label!r:.60} ({where})" for label, where in [*unmapped.items()][:_SHOWN])
        raise ConfigError(
            f"ingest: {len(unmapped)} labels mean none of the classes: {shown}; map them by ingest.label_map,"
            " or set ingest.unmapped: drop"
        )
    return chosen, reasons
