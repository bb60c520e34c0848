from pathlib import Path
from typing import get_args

import pytest

from dermtune.errors import SourceError
from dermtune.sources.listing import PartName, list_images


def test_the_synthetic_source_needs_no_folder(tmp_path: Path) -> None:
    images = list_images("synthetic", tmp_path / "nowhere", parts={}, columns={}, lesions=40, seed=1)
    assert len({image.lesion_id for image in images}) == 40


@pytest.mark.parametrize("source", get_args(PartName))
def test_other_sources_say_what_they_miss(source: PartName, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"set ingest\.path"):
        list_images(source, tmp_path, parts={}, columns={}, lesions=40, seed=1)
