"""Every image that people have becomes upright RGB; everything else becomes one short reason."""

import io
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dermtune_bundle.decode import FORMATS, HAS_HEIC, MAX_PIXELS, MIN_SIDE, count_pictures, decode, resize
from dermtune_bundle.errors import ImageError

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


def noise(height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: Image.Image | NDArray[np.uint8], kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, depth: int = 8, color: int = 2, rows: bytes = b"") -> bytes:
    """A PNG written by hand: for headers that lie, and for what Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_file_gives_its_pixels(kind: str) -> None:
    assert np.array_equal(decode(encode(noise(), kind, **LOSSLESS[kind]), name="x"), noise())


def test_a_jpeg_gives_nearly_its_pixels() -> None:
    smooth = resize(noise(2, 2), 64)
    decoded = decode(encode(smooth, "JPEG", quality=98, subsampling=0), name="x")
    assert np.abs(decoded.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "corner", "shape"),
    [
        (1, (0, 0), (40, 56, 3)),
        (2, (0, -1), (40, 56, 3)),
        (3, (-1, -1), (40, 56, 3)),
        (4, (-1, 0), (40, 56, 3)),
        (5, (0, 0), (56, 40, 3)),
        (6, (0, -1), (56, 40, 3)),
        (7, (-1, -1), (56, 40, 3)),
        (8, (-1, 0), (56, 40, 3)),
    ],
)
def test_exif_orientation_turns_the_image_upright(
    kind: str, orientation: int, corner: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    stored = np.zeros((40, 56, 3), np.uint8)
    stored[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encode(stored, kind, exif=exif), name="x")
    assert decoded.shape == shape
    assert decoded[corner].min() > 240
    assert (decoded > 128).sum() == 8 * 8 * 3


@pytest.mark.parametrize(
    ("mode", "color", "kind", "expected"),
    [
        ("1", 1, "PNG", WHITE),
        ("L", 77, "PNG", (77, 77, 77)),
        ("LA", (77, 0), "PNG", WHITE),
        ("RGBA", (*RED, 255), "PNG", RED),
        ("RGBA", (*RED, 0), "PNG", WHITE),
        ("RGBA", (*RED, 0), "WEBP", WHITE),
        ("RGBA", (0, 0, 0, 128), "TIFF", (127, 127, 127)),
        ("CMYK", (0, 255, 255, 0), "TIFF", RED),
        ("CMYK", (0, 0, 0, 255), "JPEG", BLACK),
        ("I;16", 77 * 256 + 200, "PNG", (77, 77, 77)),
        ("I;16", 77 * 256 + 200, "TIFF", (77, 77, 77)),
        ("I;16B", 77 * 256 + 200, "TIFF", (77, 77, 77)),
        ("LAB", (136, 208, 195), "TIFF", (250, 3, 11)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb(
    mode: str, color: int | tuple[int, ...], kind: str, expected: tuple[int, int, int]
) -> None:
    decoded = decode(encode(Image.new(mode, (40, 40), color), kind), name="x")
    assert decoded.dtype == np.uint8
    assert decoded.shape == (40, 40, 3)
    assert np.abs(decoded.astype(int) - expected).max() <= 2


def test_a_palette_with_a_transparent_colour_shows_white_there() -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([*RED, *BLACK])
    image.putpixel((0, 0), 1)
    decoded = decode(encode(image, transparency=0), name="x")
    assert tuple(decoded[0, 0]) == BLACK
    assert tuple(decoded[20, 20]) == WHITE


def test_sixteen_bit_colour_keeps_the_high_byte() -> None:
    row = b"\0" + bytes([10, 99, 20, 99, 30, 99]) * 40
    decoded = decode(png(40, 40, depth=16, rows=row * 40), name="x")
    assert np.array_equal(decoded, np.full((40, 40, 3), (10, 20, 30)))


def test_a_phones_two_in_one_jpeg_gives_its_first_image() -> None:
    pictures = [Image.new("RGB", (40, 40), color) for color in ("white", "blue")]
    data = encode(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert tuple(decode(data, name="x")[0, 0]) == WHITE


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert tuple(decode(data, name="x")[0, 0]) == RED


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"ceci n'est pas une image", "not a JPEG, PNG, BMP, TIFF, WebP"),
        (encode(noise(), "GIF"), "not a JPEG, PNG, BMP, TIFF, WebP"),
        (encode(noise())[:500], "truncated"),
        (encode(noise(), "JPEG")[:1000], "truncated"),
        (encode(noise(), "BMP")[:1000], "truncated"),
        (encode(noise(20, 400)), "too small: 400x20 pixels; at least 32x32"),
        (png(8001, 8000), "too large: 8001x8000 pixels; at most 64 million"),
        (png(60_000, 60_000), "too large; at most 64 million"),
        (encode(Image.new("I", (40, 40)), "TIFF"), "32-bit pixels"),
        (encode(Image.new("F", (40, 40)), "TIFF"), "32-bit pixels"),
        (png(40, 40, rows=b"\x09" * 121 * 40), "damaged"),
    ],
)
def test_what_cannot_be_used_gets_its_name_and_a_short_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode(data, name="lesion.png")
    assert str(caught.value).startswith(f"lesion.png: {reason}")
    assert "\n" not in str(caught.value)


def test_the_smallest_image_allowed_is_read() -> None:
    assert decode(encode(noise(MIN_SIDE, MIN_SIDE)), name="x").shape == (MIN_SIDE, MIN_SIDE, 3)


def test_an_image_just_over_pillows_warning_limit_raises_our_error_and_no_warning() -> None:
    side = 9_500
    assert side**2 > MAX_PIXELS
    with pytest.raises(ImageError, match="too large: 9500x9500"):  # warnings are errors in every test
        decode(png(side, side), name="x")


def test_threads_that_decode_at_once_see_no_warning_and_leave_the_filters_as_they_were() -> None:
    filters = list(warnings.filters)
    warned = png(9_500, 9_500)

    def reason(_: int) -> str:
        with pytest.raises(ImageError) as caught:
            decode(warned, name="x")
        return str(caught.value)[:24]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns often
    try:
        with ThreadPoolExecutor(8) as pool:
            reasons = set(pool.map(reason, range(400)))
    finally:
        sys.setswitchinterval(before)
    assert reasons == {"x: too large: 9500x9500 "}
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_file_with_any_bytes_changed_is_read_or_refused_but_nothing_else(
    kind: str, data: st.DataObject
) -> None:
    damaged = bytearray(encode(noise(), kind))
    places = st.integers(0, len(damaged) - 1)
    near_the_start = st.integers(0, min(200, len(damaged) - 1))
    edits = st.lists(st.tuples(places | near_the_start, st.integers(0, 255)), max_size=8)
    for place, value in data.draw(edits):
        damaged[place] = value
    end = data.draw(st.just(len(damaged)) | places)
    try:
        decoded = decode(bytes(damaged[:end]), name="x")
    except ImageError:
        return
    assert decoded.dtype == np.uint8
    assert decoded.shape[2] == 3


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_refused_politely(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data, name="x")


def test_resize_takes_the_whole_image_and_averages_thin_lines() -> None:
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    resized = resize(stripes, 32)
    assert resized.shape == (32, 32, 3)
    assert resized.dtype == np.uint8
    assert np.abs(resized[:, 2:-2].astype(int) - 100).max() <= 2


def test_resize_of_an_image_of_that_size_changes_nothing() -> None:
    assert np.array_equal(resize(noise(40, 40), 40), noise(40, 40))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_colour_profile_is_applied(kind: str, swapped_profile: bytes) -> None:
    image = Image.new("RGB", (40, 40), (220, 30, 60))
    decoded = decode(encode(image, kind, icc_profile=swapped_profile), name="x")
    assert np.abs(decoded[20, 20].astype(int) - (60, 30, 220)).max() <= 8


@pytest.mark.parametrize("profile", [b"no profile", b"\0" * 200])
def test_a_damaged_colour_profile_is_ignored(profile: bytes) -> None:
    image = Image.new("RGB", (40, 40), RED)
    assert tuple(decode(encode(image, icc_profile=profile), name="x")[0, 0]) == RED


@pytest.mark.skipif(not HAS_HEIC, reason="pillow-heif is not installed")
def test_a_phones_heic_is_read() -> None:
    decoded = decode(encode(Image.new("RGB", (64, 64), (200, 120, 80)), "HEIF", quality=95), name="x")
    assert np.abs(decoded.astype(int) - (200, 120, 80)).max() <= 6


@pytest.mark.parametrize("size", [(32, 30_000), (30_000, 32)])
def test_a_long_strip_is_refused_unread(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"too large: .* and 20000 a side"):
        decode(encode(Image.new("1", size)), name="x")


@pytest.mark.parametrize("mode", ["RGB", "1", "P", "L", "I;16", "RGBA"])
def test_a_huge_image_is_made_smaller_and_looks_the_same(mode: str) -> None:
    small = Image.radial_gradient("L").resize((64, 48))
    huge = small.resize((64 * 40, 48 * 40), Image.Resampling.BILINEAR)
    if mode == "I;16":
        huge = Image.fromarray(np.asarray(huge).astype(np.uint16) * 257)
    huge = huge.convert(mode)
    found = decode(encode(huge), name="x")
    assert found.shape == (48 * 20, 64 * 20, 3)
    assert np.abs(resize(found, 32).astype(int) - resize(decode(encode(small), name="x"), 32)).mean() < 6


def test_pictures_are_counted() -> None:
    pages = io.BytesIO()
    Image.new("L", (40, 40)).save(pages, "TIFF", save_all=True, append_images=[Image.new("L", (40, 40))] * 2)
    assert count_pictures(pages.getvalue()) == 3
    assert count_pictures(encode(Image.new("L", (40, 40)))) == count_pictures(b"no image") == 1
