from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermtune.inference import look_at_images
from dermtune.shards import ImagePacker, PackedImages, Place
from dermtune_bundle.errors import ImageError
from dermtune_bundle.graph import Graph


@pytest.fixture
def places(tmp_path: Path) -> list[Place]:
    with ImagePacker(tmp_path) as packer:
        found = []
        for name, colour in (("a", "red"), ("b", "blue"), ("c", "lime")):
            Image.new("RGB", (40, 50), colour).save(tmp_path / "picture.png")
            found.append(Place(name, *packer.add(name, (tmp_path / "picture.png").read_bytes())))
    return found


def test_answers_come_in_the_order_of_the_places(
    tmp_path: Path, places: list[Place], make_graph: Callable[..., bytes]
) -> None:
    graph = Graph(make_graph(), threads=1)
    found = look_at_images(graph, PackedImages(tmp_path), places, description="test")
    assert found.probabilities.shape == (3, 3)
    assert list(found.probabilities.argmax(1)) == [0, 2, 1]
    assert np.allclose(found.probabilities.sum(1), 1)
    assert np.allclose(found.embeddings, [[255, 0, 0], [0, 0, 255], [0, 255, 0]])
    assert found.distances == pytest.approx([2.55] * 3)
    assert [one.brightness for one in found.qualities] == pytest.approx([85] * 3)


def test_a_bad_image_is_named(tmp_path: Path, places: list[Place], make_graph: Callable[..., bytes]) -> None:
    graph = Graph(make_graph(), threads=1)
    broken = [places[0], places[1]._replace(size=20)]
    with pytest.raises(ImageError, match=r"^b: "):
        look_at_images(graph, PackedImages(tmp_path), broken, description="test")
