"""The choice of `ingest.source`."""

from pathlib import Path
from typing import Literal

from dermtune.sources import SourceImage
from dermtune.sources.ham10000 import ham10000
from dermtune.sources.ph2 import ph2
from dermtune.sources.synthetic import synthetic

SourceName = Literal["synthetic", "ham10000", "ph2"]


def list_images(source: SourceName, path: Path, *, synthetic_lesions: int, seed: int) -> list[SourceImage]:
    """List a source's images; `path` is its folder, the last two are for the synthetic source."""
    match source:
        case "synthetic":
            return synthetic(lesions=synthetic_lesions, seed=seed)
        case "ham10000":
            return ham10000(path)
        case "ph2":
            return ph2(path)
