import io
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from dermtune import duplicates
from dermtune.duplicates import find_duplicates, make_print
from dermtune.sources.synthetic import synthetic
from dermtune_bundle.decode import decode

REAL = Path(__file__).parents[2].parent / "shared/data/ham10000"


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


def saved_as_jpeg(image: np.ndarray, quality: int = 75) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def changed_in_all_ways(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cropped to 80 to 100% of each side, flipped or turned, shrunk by up to a half, and saved as JPEG."""
    shape = np.array(image.shape[:2])
    size = np.round(shape * rng.uniform(0.8, 1, 2)).astype(int)
    y, x = rng.integers(0, shape - size + 1)
    crop = np.rot90(image[y : y + size[0], x : x + size[1]], int(rng.integers(4)))
    crop = crop[::-1] if rng.integers(2) else crop
    smaller = np.round(rng.uniform(0.5, 1) * np.array(crop.shape[1::-1])).astype(int)
    shrunk = Image.fromarray(np.ascontiguousarray(crop)).resize(tuple(smaller.tolist()))
    return saved_as_jpeg(np.asarray(shrunk), int(rng.integers(60, 96)))


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


@pytest.fixture(scope="module")
def planted() -> np.ndarray:
    """Prints of two photographs each of 60 drawn lesions, then of a changed copy of each photograph."""
    rng = np.random.default_rng(0)
    drawn = [image for image in synthetic(lesions=60, seed=1) if image.image_id.endswith(("_1", "_2"))]
    photos = [decode(image.content(), name=image.image_id) for image in drawn]
    copies = [changed_in_all_ways(photo, rng) for photo in photos]
    return np.stack([make_print(image) for image in photos + copies])


def test_changed_crops_are_found_and_other_photographs_of_a_lesion_are_not(planted: np.ndarray) -> None:
    half = len(planted) // 2
    found = {pair[:2] for pair in find_duplicates(planted)}
    pairs = {(row, half + row) for row in range(half)}
    assert len(found & pairs) >= 0.98 * half
    assert found <= pairs


def test_two_images_are_copies_or_not_whatever_other_images_there_are(planted: np.ndarray) -> None:
    half = len(planted) // 2
    among = {pair[:2] for pair in find_duplicates(planted)}
    between = find_duplicates(planted[:half], planted[half:])
    assert {(pair.first, half + pair.second) for pair in between} == among
    backwards = find_duplicates(planted[half:], planted[:half])
    assert {(pair.second, half + pair.first) for pair in backwards} == among
    few = find_duplicates(planted[:half:7], planted[half::7])
    assert {(7 * pair.first, half + 7 * pair.second) for pair in few} == {
        pair for pair in among if pair[0] % 7 == (pair[1] - half) % 7 == 0
    }


def test_images_are_compared_in_blocks_with_the_same_result(
    planted: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = find_duplicates(planted)
    monkeypatch.setattr(duplicates, "_BLOCK", 50)
    assert [pair[:2] for pair in find_duplicates(planted)] == [pair[:2] for pair in at_once]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real images at ../shared/data")
def test_changed_crops_of_real_photographs_are_found_and_other_lesions_are_not() -> None:
    rng = np.random.default_rng(1)
    table = pd.read_csv(REAL / "HAM10000_metadata.csv")
    there = [(REAL / f"images/{name}.jpg").exists() for name in table["image_id"]]
    table = table[there].sample(1000, random_state=1)
    photos = [decode((REAL / f"images/{name}.jpg").read_bytes(), name=name) for name in table["image_id"]]
    copies = [changed_in_all_ways(photo, rng) for photo in photos]
    found = find_duplicates(np.stack([make_print(image) for image in photos + copies]))
    lesions = [*table["lesion_id"], *table["lesion_id"]]
    planted = [pair for pair in found if pair.first + 1000 == pair.second]
    wrong = [pair for pair in found if lesions[pair.first] != lesions[pair.second]]
    assert len(planted) >= 0.98 * 1000
    assert len(wrong) <= 0.001 * len(found)
