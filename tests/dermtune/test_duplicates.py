import io
import itertools

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dermtune.duplicates import find_duplicates, make_print


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Parts of two photographs, none of which overlaps another much; not of the sky, which is blank."""
    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    for photo in load_sample_images().images:
        for y, x in itertools.product(range(0, 330, 55), range(0, 540, 60)):
            side = 80 + int(rng.integers(20))
            part = np.ascontiguousarray(photo[y : y + side, x : x + side])
            if part.mean(axis=2).std() > 30:
                parts.append(part)
    return parts


def saved_as_jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer))


CHANGES = {
    "the same": lambda image: image,
    "jpeg": saved_as_jpeg,
    "rescaled": lambda image: np.asarray(Image.fromarray(image).resize((400, 300))),
    "brighter": lambda image: (image * 0.7 + 60).astype(np.uint8),
    "flipped": lambda image: image[:, ::-1],
    "turned": np.rot90,
    "turned and flipped": lambda image: np.rot90(image[::-1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_nothing_else(images: list[np.ndarray], change: str) -> None:
    copies = [np.ascontiguousarray(CHANGES[change](image)) for image in images[::4]]
    prints = np.stack([make_print(image) for image in images])
    others = np.stack([make_print(image) for image in copies])
    found = {(pair.first, pair.second) for pair in find_duplicates(prints, others)}
    planted = {(4 * number, number) for number in range(len(copies))}
    assert len(planted & found) >= 0.98 * len(planted)
    assert len(found - planted) <= 0.001 * len(images) * len(copies)
    among = find_duplicates(np.concatenate([prints, others]))
    assert {(pair.first, pair.second) for pair in among} >= {(a, len(images) + b) for a, b in planted & found}
    assert all(pair.first < pair.second for pair in among)


def test_blank_images_are_no_copies_of_anything(images: list[np.ndarray]) -> None:
    blank = make_print(np.full((50, 60, 3), 128, np.uint8))
    assert find_duplicates(np.stack([blank, blank, make_print(images[0])])) == []


def test_of_no_images_none_are_copies() -> None:
    nothing = np.empty((0, 48, 48), np.uint8)
    assert find_duplicates(nothing) == []
    assert find_duplicates(np.ones((2, 48, 48), np.uint8), nothing) == []
