from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermtune.inference import predict_images
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


def test_probabilities_come_in_the_order_of_the_places(
    tmp_path: Path, places: list[Place], make_graph: Callable[..., bytes]
) -> None:
    graph = Graph(make_graph(), threads=1)
    found = predict_images(graph, PackedImages(tmp_path), places, description="test")
    assert found.shape == (3, 3)
    assert list(found.argmax(1)) == [0, 2, 1]
    assert np.allclose(found.sum(1), 1)


def test_a_bad_image_is_named(tmp_path: Path, places: list[Place], make_graph: Callable[..., bytes]) -> None:
    graph = Graph(make_graph(), threads=1)
    broken = [places[0], places[1]._replace(size=20)]
    with pytest.raises(ImageError, match=r"^b: "):
        predict_images(graph, PackedImages(tmp_path), broken, description="test")
