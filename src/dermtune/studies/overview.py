"""What the studies found, on one page: each leaves a section, and the overview is made of them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dermtune.figures import write_figure
from dermtune.page import render_page
from dermtune_bundle.files import atomic_path
from dermtune_bundle.manifest import NOTICE


@dataclass(frozen=True)
class Section:
    """What one study found, in short."""

    title: str
    verdict: str
    """A sentence or two, with figures."""
    alt: str
    """What its figure shows, for who cannot see it."""


def write_study(out: Path, page: str, figure: Figure, section: Section) -> None:
    """Write a study's page, its figure and its section, then the overview of all studies.

    Args:
        out: the study's folder; its name is that of NAME.html and NAME.png, beside section.json. The overview
            is studies.html beside the folder.
        page: HTML.
        figure: the study's main one.
        section: what the overview says of it.
    """
    write_figure(figure, out / f"{out.name}.png")
    texts = {
        out / f"{out.name}.html": page,
        out / "section.json": json.dumps(asdict(section), indent=2) + "\n",
    }
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic_path(out.parent / "studies.html") as temporary:
        temporary.write_text(render_overview(out.parent), encoding="utf-8")


def render_overview(folder: Path) -> str:
    """The page of the studies that were run; one whose files are damaged is left out.

    Args:
        folder: a folder a study, as `write_study` fills them.
    """
    found = (_read(path.parent) for path in sorted(folder.glob("*/section.json")))
    studies = [study for study in found if study is not None]
    return render_page("studies/overview.html", {"studies": studies, "notice": NOTICE})


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        section = Section(**json.loads((folder / "section.json").read_text(encoding="utf-8")))
        png = (folder / f"{folder.name}.png").read_bytes()
    except (OSError, ValueError, TypeError):
        return None
    return asdict(section) | {"name": folder.name, "png": png}
