"""Copies of photographs: how many planted ones are found, how many pairs are wrong, and how long it takes.

    python benchmarks/duplicates.py [--images ../shared/data/ham10000] [--planted 1000] [--timed 10000]

Every kind of change is planted on the same photographs and looked for on its own, among all of them. Pairs
of photographs of one lesion count neither as found nor as wrong.
"""

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator
from PIL import Image

from dermtune.duplicates import find_duplicates, make_print

Change = Callable[[Image.Image, Generator], Image.Image]


def jpeg(image: Image.Image, rng: Generator) -> Image.Image:
    """Saved anew at quality 60 to 95."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(60, 96)))
    return Image.open(file)


def rescale(image: Image.Image, rng: Generator) -> Image.Image:
    """Shrunk by up to a half."""
    scale = rng.uniform(0.5, 1)
    return image.resize((round(scale * image.width), round(scale * image.height)))


def turn(image: Image.Image, rng: Generator) -> Image.Image:
    """Flipped or turned in one of seven ways."""
    return image.transpose(rng.choice(list(Image.Transpose)))


def crop(image: Image.Image, rng: Generator, least: float = 0.8, most: float = 1) -> Image.Image:
    """Of each side, a share from `least` to `most`."""
    width, height = (round(rng.uniform(least, most) * side) for side in image.size)
    left, top = (int(rng.integers(0, spare + 1)) for spare in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def everything(image: Image.Image, rng: Generator, least: float = 0.8, most: float = 1) -> Image.Image:
    """Cropped, turned, shrunk and saved anew."""
    return jpeg(rescale(turn(crop(image, rng, least, most), rng), rng), rng)


CHANGES: dict[str, Change] = {
    "jpeg 60-95": jpeg,
    "rescale 0.5-1": rescale,
    "flip or turn": turn,
    "crop 80-100%": crop,
    "all of these": everything,
    "all, crop 90-100%": partial(everything, least=0.9),
    "all, crop 80-82%": partial(everything, most=0.82),
    "all, crop 70-80%": partial(everything, least=0.7, most=0.8),
}


def main() -> None:
    """Print what is found of each kind of change, and the seconds that looking takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=Path("../shared/data/ham10000"))
    parser.add_argument("--planted", type=int, default=1000)
    parser.add_argument("--timed", type=int, default=10_000)
    chosen = parser.parse_args()
    folder = chosen.images / "images"
    lesion = pd.read_csv(chosen.images / "HAM10000_metadata.csv").set_index("image_id")["lesion_id"]
    paths = sorted(folder.glob("*.jpg"))
    rng = np.random.default_rng(0)
    picked = [paths[row] for row in rng.choice(len(paths), chosen.planted, replace=False)]
    lesions = [lesion[path.stem] for path in picked] * 2
    photos = [Image.open(path).convert("RGB") for path in picked]
    prints = [make_print(np.asarray(photo)) for photo in photos]
    print(f"{len(photos)} photographs and a copy of each:   recall   pairs reported   wrong   seconds")
    for name, change in CHANGES.items():
        copies = [make_print(np.asarray(change(photo, rng))) for photo in photos]
        start = time.perf_counter()
        pairs = [pair[:2] for pair in find_duplicates(np.stack(prints + copies))]
        seconds = time.perf_counter() - start
        recall = sum(second - first == len(photos) for first, second in pairs) / len(photos)
        wrong = sum(lesions[first] != lesions[second] for first, second in pairs)
        print(f"  {name:35} {recall:6.3f} {len(pairs):16} {wrong:7} {seconds:9.1f}", flush=True)
    for count in (1000, chosen.timed):
        time_looking(paths, lesion, count)


def time_looking(paths: list[Path], lesion: pd.Series, count: int) -> None:
    """Print the seconds for so many images, and the pairs of two lesions among the real ones.

    Where there are fewer photographs than asked for, small parts of some stand in for others.
    """
    rng = np.random.default_rng(1)
    photos = (Image.open(path).convert("RGB") for path in paths[:count])
    prints = [make_print(np.asarray(photo)) for photo in photos]
    for path in paths[: max(count - len(paths), 0)]:
        part = crop(Image.open(path).convert("RGB"), rng, 0.5, 0.6)
        prints.append(make_print(np.asarray(part)))
    start = time.perf_counter()
    pairs = find_duplicates(np.stack(prints))
    seconds = time.perf_counter() - start
    names = [path.stem for path in paths]
    real = [(names[pair.first], names[pair.second]) for pair in pairs if pair.second < len(names)]
    wrong = [f"{first}-{second}" for first, second in real if lesion[first] != lesion[second]]
    print(
        f"{len(prints)} images: {seconds:.1f} s, {len(real)} pairs, {len(wrong)} of two lesions", *wrong[:10]
    )


if __name__ == "__main__":
    main()
