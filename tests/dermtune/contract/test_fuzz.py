"""Files as disks, networks and strangers damage them: each is used, or set aside with a reason."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from dermtune.quality import CheckedImage, check_image
from dermtune.sources import SourceImage
from dermtune.sources.synthetic import synthetic
from dermtune_bundle.decode import decode


def originals() -> list[bytes]:
    """One synthetic image in each format and mode that is read."""
    picture = (
        Image.open(io.BytesIO(synthetic(lesions=40, seed=1)[0].content())).convert("RGB").resize((96, 72))
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    saved = []
    for kind, image, options in [
        ("JPEG", picture, {"exif": exif, "comment": b"x"}),
        ("JPEG", picture, {"progressive": True, "quality": 60}),
        ("JPEG", picture.convert("CMYK"), {}),
        ("PNG", picture, {}),
        ("PNG", picture.quantize(32), {}),
        ("PNG", Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) << 8), {}),
        ("BMP", picture, {}),
        ("TIFF", picture, {"compression": "tiff_lzw"}),
        ("WEBP", picture, {"quality": 70}),
    ]:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        saved.append(buffer.getvalue())
    return saved


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, insert, repeat or blank a part, most often near the header."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 400)
        place, length = int(rng.integers(0, max(end, 1))), int(rng.integers(1, 40))
        match int(rng.integers(0, 6)):
            case 0:
                changed[place : place + 1] = rng.bytes(1)
            case 1:
                del changed[place:]
            case 2:
                changed[place:place] = rng.bytes(length)
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                changed[place : place + length] = bytes(len(changed[place : place + length]))
            case _:
                del changed[place : place + length]
    return bytes(changed)


def require_used_or_set_aside(mutations: int, seed: int) -> None:
    rng, files = np.random.default_rng(seed), originals()
    used = 0
    for number in range(mutations):
        data = mutate(files[number % len(files)], rng)
        image = SourceImage("I", "L", "nv", "I", partial(bytes, data))
        checked = check_image(image)
        if isinstance(checked, CheckedImage):
            used += 1
            kept = decode(checked.data, name="kept", suffix=checked.suffix)
            assert np.array_equal(kept, decode(data, name="given")), number
        else:
            assert 0 < len(checked) < 200, number
    assert 0.05 < used / mutations < 0.95


def test_a_damaged_file_is_used_or_set_aside_with_a_reason() -> None:
    require_used_or_set_aside(900, seed=1)


@pytest.mark.slow
def test_twenty_thousand_damaged_files_are_used_or_set_aside_with_a_reason() -> None:
    require_used_or_set_aside(20_000, seed=2)
