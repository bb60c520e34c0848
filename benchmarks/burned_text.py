"""Text burned into the pixels: how often it is found, how often seen where there is none, how fast.

    python benchmarks/burned_text.py [--data ../shared/data] [--images 1000]

Half of the HAM10000 images chosen, enlarged to 600x450, and half of the synthetic ones get a text, the other
half of both and all of PH2 are taken for free of text. Texts are names, dates and ids of 6 to 20 characters
at an edge, white, black, yellow or green, in Pillow's own font or DejaVu Sans, of a size of 5 to 10% of the
shorter side and at least 10 pixels; half of them are saved as a JPEG of quality 90 afterwards.
"""

import argparse
import io
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dermtune.burned_text import has_text
from dermtune.sources.synthetic import synthetic
from dermtune_bundle.decode import decode

Pixels = NDArray[np.uint8]

COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "yellow": (255, 255, 0), "green": (0, 255, 0)}
DEJAVU = Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
CHARACTERS = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"]
NAMES = ("Mustermann", "Smith", "Jane Doe", "MUELLER", "Garcia Lopez", "Ivanova, O.")
MARGIN = 3  # pixels between a text and the edge


def make_text(rng: np.random.Generator) -> str:
    """A name and a year, a date, an id, or any characters."""
    texts = (
        f"{rng.choice(NAMES)} {rng.integers(1930, 2010)}",
        f"{rng.integers(1, 29):02}.{rng.integers(1, 13):02}.{rng.integers(1930, 2025)}",
        f"ID {rng.integers(10**4, 10**9)}",
        "".join(rng.choice(CHARACTERS, rng.integers(6, 21))),
    )
    return texts[rng.integers(len(texts))]


def plant(pixels: Pixels, rng: np.random.Generator) -> tuple[Pixels, str, float]:
    """The image (H, W, 3) with a text in it, its colour, and its size as a share of the shorter side."""
    image = Image.fromarray(pixels)
    share = rng.uniform(0.05, 0.1)
    size = max(10, round(share * min(image.size)))
    font = ImageFont.truetype(DEJAVU, size) if rng.integers(2) else ImageFont.load_default(size=size)
    draw, text, colour = ImageDraw.Draw(image), make_text(rng), str(rng.choice([*COLOURS]))
    while (box := draw.textbbox((0, 0), text, font=font))[2] > image.width - 2 * MARGIN:
        text = text[:-1]
    right, low = image.width - MARGIN - box[2], image.height - MARGIN - box[3]
    place = (rng.choice([MARGIN, right, rng.integers(MARGIN, right + 1)]), rng.choice([MARGIN - box[1], low]))
    draw.text(place, text, COLOURS[colour], font)
    if rng.integers(2):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        return decode(file.getvalue(), name="planted"), colour, share
    return np.asarray(image), colour, share


def read(paths: Sequence[Path]) -> Iterator[Pixels]:
    """Real images."""
    return (decode(path.read_bytes(), name=path.name) for path in paths)


def enlarge(pixels: Pixels) -> Pixels:
    """To the 600x450 pixels that HAM10000 has where it is whole."""
    return np.asarray(Image.fromarray(pixels).resize((600, 450), Image.Resampling.BICUBIC))


def report_false(name: str, images: Sequence[Pixels]) -> None:
    """Print how many of the images without text are flagged, and how long an image takes."""
    flags, seconds = [], []
    for pixels in images:
        start = time.perf_counter()
        flags.append(has_text(pixels))
        seconds.append(time.perf_counter() - start)
    if flags:
        share, milliseconds = np.mean(flags), 1000 * np.median(seconds)
        print(f"{name}: {sum(flags)} of {len(flags)} flagged ({share:.1%}), {milliseconds:.2f} ms an image")


def report_found(name: str, images: Sequence[Pixels], rng: np.random.Generator) -> None:
    """Print which share of planted texts is found, by colour and by size."""
    found: dict[str, list[bool]] = defaultdict(list)
    for pixels in images:
        planted, colour, share = plant(pixels, rng)
        flag = has_text(planted)
        for group in ("all", colour, f"{int(100 * share)}% high"):
            found[group].append(flag)
    shares = ", ".join(f"{group} {np.mean(flags):.2f}" for group, flags in sorted(found.items()))
    print(f"{name}: {shares}")


def main() -> None:
    """Print false flags and milliseconds by set, then recall by set, colour and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--images", type=int, default=1000)
    chosen = parser.parse_args()
    rng = np.random.default_rng(0)
    cv2.setNumThreads(1)
    paths = sorted((chosen.data / "ham10000/images").glob("*.jpg"))
    ham = [*read([paths[index] for index in rng.permutation(len(paths))[: chosen.images]])]
    large = [enlarge(pixels) for pixels in ham]
    drawn = [decode(image.content(), name="synthetic") for image in synthetic(lesions=150, seed=1)]
    print("without text")
    report_false("  HAM10000, 200x150", ham)
    report_false("  HAM10000, 600x450", large[::2])
    report_false("  PH2, 765x573", [*read(sorted((chosen.data / "ph2").rglob("*Dermoscopic_Image/*.bmp")))])
    report_false("  synthetic, 300x225", drawn[::2])
    print("with text: share found")
    if ham:
        report_found("  HAM10000, 200x150", ham[1::2], rng)
        report_found("  HAM10000, 600x450", large[1::2], rng)
    report_found("  synthetic, 300x225", drawn[1::2], rng)


if __name__ == "__main__":
    main()
