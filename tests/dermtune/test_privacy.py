"""What is stored of a file says nothing of whom it shows, and shows the same pixels, bit for bit."""

import io
import multiprocessing
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo
from pydicom import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from dermtune.errors import DataError
from dermtune.privacy import pseudonym, read_key, scrub
from dermtune_bundle.decode import HAS_HEIC, decode
from dermtune_bundle.errors import ImageError

MARK = "ZZ-Jane-Doe-1957-ZZ"
MUTATIONS = 40  # of each of the files below


def picture(height: int = 48, width: int = 64) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 3))
    smooth = np.stack([4 * y % 256, 3 * x % 256, 255 - y % 256], axis=-1)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int = 1, mark: str = MARK) -> Image.Exif:
    tags = Image.Exif()
    tags[Base.Orientation] = orientation
    tags[Base.Artist] = mark
    tags.get_ifd(IFD.Exif).update({0xA430: mark, 0xA431: mark})  # the camera's owner and serial number
    tags.get_ifd(IFD.GPSInfo).update({1: "N", 2: (48.0, 12.0, 31.0), 29: mark})
    return tags


def after_start(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def with_chunk(png: bytes, kind: bytes, content: bytes, *, before: bytes = b"IDAT") -> bytes:
    chunk = struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))
    at = png.index(before) - 4
    return png[:at] + chunk + png[at:]


def text() -> PngInfo:
    info = PngInfo()
    info.add_text("Patient", MARK)
    info.add_itxt("Comment", MARK)
    return info


def dicom() -> bytes:
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.4"
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.PatientName = made.PatientID = MARK
    made.SamplesPerPixel, made.PlanarConfiguration, made.PhotometricInterpretation = 3, 0, "RGB"
    made.Rows, made.Columns = picture().height, picture().width
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PixelData = np.asarray(picture()).tobytes()
    made["PixelData"].VR = "OB"
    file = io.BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


JPEG, PNG = encode(picture()), encode(picture(), "PNG")
MARKED = MARK.encode()
MARKS = {
    "EXIF with place, owner and serial number": (encode(picture(), exif=exif()), ".jpg"),
    "EXIF that turns": (encode(picture(), exif=exif(6)), ".jpg"),
    "XMP": (encode(picture(), xmp=b"<x:xmpmeta>" + MARKED), ".jpg"),
    "comment": (encode(picture(), comment=MARKED), ".jpg"),
    "Photoshop": (after_start(JPEG, 0xED, b"Photoshop 3.0\0" + MARKED), ".jpg"),
    "maker note": (after_start(JPEG, 0xEC, MARKED), ".jpg"),
    "JFXX": (after_start(JPEG, 0xE0, b"JFXX\0\x10" + MARKED), ".jpg"),
    "small copy in JFIF": (
        after_start(JPEG, 0xE0, b"JFIF\0\1\1\0\0\1\0\1\x13\x01" + 3 * MARKED),
        ".jpg",
    ),
    "long Adobe note": (after_start(JPEG, 0xEE, b"Adobe\0\x64\0\0\0\0\1" + MARKED), ".jpg"),
    "second picture": (
        encode(picture(), "MPO", save_all=True, append_images=[picture()], comment=MARKED),
        ".jpg",
    ),
    "behind a JPEG": (JPEG + MARKED, ".jpg"),
    "behind an odd JPEG": (JPEG[:20] + b"junk" + JPEG[20:] + MARKED, ".png"),
    "PNG text": (encode(picture(), "PNG", pnginfo=text()), ".png"),
    "PNG EXIF": (encode(picture(), "PNG", exif=exif()), ".png"),
    "PNG EXIF that turns": (encode(picture(), "PNG", exif=exif(6)), ".png"),
    "PNG EXIF behind the pixels": (
        with_chunk(PNG, b"eXIf", exif(3).tobytes()[6:], before=b"IEND"),
        ".png",
    ),
    "PNG chunk of someone's own": (with_chunk(PNG, b"prVt", MARKED), ".png"),
    "PNG chunk that is too long": (with_chunk(PNG, b"pHYs", bytes(9) + MARKED), ".png"),
    "behind a PNG": (PNG + MARKED, ".png"),
    "TIFF tags": (encode(picture(), "TIFF", description=MARK), ".png"),
    "WebP EXIF": (encode(picture(), "WEBP", exif=exif(6)), ".png"),
    "behind a BMP": (encode(picture(), "BMP") + MARKED, ".png"),
    "DICOM": (dicom(), ".png"),
}


def assert_scrubbed(data: bytes) -> tuple[bytes, str]:
    pixels = decode(data, name="x")
    found, suffix = scrub(data, pixels)
    assert np.array_equal(decode(found, name="x", suffix=suffix), pixels)
    return found, suffix


@pytest.mark.parametrize("kind", MARKS)
def test_nothing_is_left_of_what_stands_beside_the_pixels(kind: str) -> None:
    data, suffix = MARKS[kind]
    assert MARKED in data
    found, its_suffix = assert_scrubbed(data)
    assert MARKED not in found
    assert its_suffix == suffix


def test_a_small_copy_in_the_exif_goes() -> None:
    small = encode(picture(32, 32), comment=MARKED)
    ifd = struct.pack(">HHHLL", 1, 0x0112, 3, 1, 6 << 16) + struct.pack(">L", 26)
    ifd += struct.pack(">HHHLLHHLLL", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(small), 0)
    found, suffix = assert_scrubbed(after_start(JPEG, 0xE1, b"Exif\0\0MM\0*\0\0\0\x08" + ifd + small))
    assert suffix == ".jpg"
    assert MARKED not in found
    assert len(found) == len(JPEG) + 36  # an orientation


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_with_nothing_to_leave_out_stays_as_it_is(mode: str, options: dict[str, object]) -> None:
    data = encode(picture().convert(mode), **options)
    assert assert_scrubbed(data) == (data, ".jpg")
    assert assert_scrubbed(encode(picture().convert(mode), comment=MARKED, **options))[0] == data


def test_notes_between_the_scans_of_a_progressive_file_go() -> None:
    data = encode(picture(), progressive=True)
    at = data.rindex(b"\xff\xc4")
    noted = data[:at] + b"\xff\xfe" + struct.pack(">H", len(MARKED) + 2) + MARKED + data[at:]
    assert assert_scrubbed(noted) == (data, ".jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_was_turned_is_turned_still(kind: str, orientation: int) -> None:
    data = encode(picture(), kind, exif=exif(orientation))
    found, suffix = assert_scrubbed(data)
    assert suffix == (".jpg" if kind == "JPEG" else ".png")
    assert MARKED not in found


def test_a_picture_that_its_xmp_turns_is_turned_still() -> None:
    data = encode(picture(), xmp=b'<x tiff:Orientation="8"/>' + MARKED)
    assert decode(data, name="x").shape == (64, 48, 3)
    found, suffix = assert_scrubbed(data)
    assert suffix == ".jpg"
    assert MARKED not in found


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_colour_profile_is_kept(kind: str, swapped_profile: bytes) -> None:
    data = encode(picture(), kind, icc_profile=swapped_profile, comment=MARKED)
    assert not np.array_equal(decode(data, name="x"), decode(encode(picture(), kind), name="x"))
    found, _ = assert_scrubbed(data)
    assert MARKED not in found
    with Image.open(io.BytesIO(found)) as image:
        assert image.info["icc_profile"] == swapped_profile


@pytest.mark.parametrize(
    ("kind", "size"), [("JPEG", 0), ("PNG", 0), ("JPEG", 500), ("PNG", 500), ("JPEG", 1 << 20)]
)
def test_what_is_no_colour_profile_is_not(kind: str, size: int, swapped_profile: bytes) -> None:
    wrong = swapped_profile + bytes(size) + MARKED
    found, suffix = assert_scrubbed(encode(picture(), kind, icc_profile=wrong))
    assert suffix == ".png"
    assert MARKED not in found
    with Image.open(io.BytesIO(found)) as image:
        assert "icc_profile" not in image.info


def test_a_profile_of_several_parts_is_kept_and_a_part_too_many_is_not(swapped_profile: bytes) -> None:
    first, second = swapped_profile[:300], swapped_profile[300:]
    parts = after_start(JPEG, 0xE2, b"ICC_PROFILE\0\2\2" + second)
    parts = after_start(parts, 0xE2, b"ICC_PROFILE\0\1\2" + first)
    assert assert_scrubbed(parts) == (parts, ".jpg")
    assert assert_scrubbed(after_start(parts, 0xE2, b"ICC_PROFILE\0\3\2" + MARKED))[1] == ".png"


@pytest.mark.parametrize(
    "image",
    [
        picture().convert("L"),
        picture().convert("1"),
        picture().convert("RGBA"),
        picture().convert("LA"),
        picture().quantize(16),
        Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 251),
    ],
)
def test_a_png_keeps_its_pixels_as_they_are_stored(image: Image.Image) -> None:
    clean = encode(image, "PNG")
    assert assert_scrubbed(encode(image, "PNG", pnginfo=text())) == (clean, ".png")
    assert assert_scrubbed(clean) == (clean, ".png")


def test_a_transparent_colour_stays_transparent() -> None:
    data = encode(picture().quantize(16), "PNG", transparency=3, pnginfo=text())
    assert b"tRNS" in assert_scrubbed(data)[0]


def test_of_an_animation_the_first_picture_is_kept() -> None:
    others = [picture().rotate(90), picture().rotate(180)]
    for default in (False, True):
        data = encode(picture(), "PNG", save_all=True, append_images=others, default_image=default)
        found, _ = assert_scrubbed(data)
        assert not any(kind in found for kind in (b"acTL", b"fcTL", b"fdAT"))


def test_pixels_behind_the_pixels_go() -> None:
    parted = with_chunk(with_chunk(PNG, b"tEXt", b"a\0b", before=b"IEND"), b"IDAT", MARKED, before=b"IEND")
    assert MARKED in parted
    assert MARKED not in assert_scrubbed(parted)[0]


@pytest.mark.skipif(not HAS_HEIC, reason="the extra [heic] is not installed")
def test_a_phones_heic_becomes_a_png() -> None:
    data = encode(picture(64, 64), "HEIF", quality=95, exif=exif())
    assert MARKED in data
    found, suffix = assert_scrubbed(data)
    assert suffix == ".png"
    assert MARKED not in found


def test_a_picture_that_decode_makes_smaller_keeps_its_pixels() -> None:
    """4001 x 3999 pixels become 2001 x 2000, which is more than decode leaves as it is."""
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3999, 4001), np.uint8))
    found, suffix = assert_scrubbed(encode(large, "BMP"))
    assert suffix == ".png"
    assert decode(found, name="x").shape == (2000, 2001, 3)


def test_a_jpeg_that_would_become_a_dicom_file_becomes_a_png() -> None:
    """Four letters at byte 128 make one; here they are numbers of a table, which a comment had moved."""
    turned = JPEG[:128] + b"DICM" + JPEG[132:]
    with pytest.raises(ImageError):
        decode(turned, name="x")
    assert assert_scrubbed(after_start(turned, 0xFE, MARKED))[1] == ".png"


def test_a_jpeg_with_filling_between_its_pixels_becomes_a_png() -> None:
    """What libjpeg makes of it depends on how many bytes follow."""
    start = JPEG.index(b"\xff\xda") + 16
    for at in range(start, len(JPEG) - 20, 20):
        filled = JPEG[:at] + b"\xff\xff\0" + JPEG[at:] + bytes(4096)
        assert assert_scrubbed(filled)[1] == ".png"


@pytest.mark.parametrize("early", [b"\xff\xd9", b"\xff\xd3", b"\xff\xfe\0\2"])
def test_a_jpeg_whose_pixels_end_early_keeps_them(early: bytes) -> None:
    start = JPEG.index(b"\xff\xda") + 16
    for at in range(start, len(JPEG) - 20, 20):
        assert_scrubbed(JPEG[:at] + early + JPEG[at:] + bytes(4096))


def seeds(swapped_profile: bytes) -> dict[str, bytes]:
    rich = {"exif": exif(6), "comment": MARKED, "icc_profile": swapped_profile}
    return {
        "jpeg": JPEG,
        "rich": encode(picture(), **rich),
        "progressive": encode(picture(), progressive=True, **rich),
        "restarts": encode(picture(), restart_marker_blocks=3),
        "cmyk": encode(picture().convert("CMYK")),
        "mpo": encode(picture(), "MPO", save_all=True, append_images=[picture()]),
        "png": encode(picture(), "PNG", pnginfo=text(), icc_profile=swapped_profile),
        "palette": encode(picture().quantize(16), "PNG", transparency=3),
        "animation": encode(picture(), "PNG", save_all=True, append_images=[picture().rotate(90)]),
        "bmp": encode(picture(), "BMP"),
        "tiff": encode(picture(), "TIFF", exif=exif(6)),
        "webp": encode(picture(), "WEBP", exif=exif(6)),
    }


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip a bit, cut, insert or repeat bytes, or begin a segment; half of it in the head of the file."""
    made = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(made) if rng.random() < 0.5 else min(len(made), 700)))
        size = int(rng.integers(1, 30))
        match rng.integers(5):
            case 0:
                made[at] ^= 1 << int(rng.integers(8))
            case 1:
                del made[at : at + size]
            case 2:
                made[at:at] = rng.bytes(size)
            case 3:
                made[at:at] = made[at : at + size]
            case _:
                made[at:at] = bytes([0xFF, rng.integers(0xC0, 0xFF), 0, size]) + rng.bytes(8)
    return bytes(made)


def test_of_damaged_files_all_that_decode_reads_keeps_its_pixels(swapped_profile: bytes) -> None:
    rng = np.random.default_rng(0)
    read = 0
    for data in seeds(swapped_profile).values():
        for _ in range(MUTATIONS):
            mutated = mutate(data, rng)
            try:
                decode(mutated, name="x")
            except ImageError:
                continue
            assert_scrubbed(mutated)
            read += 1
    assert read > MUTATIONS


def test_a_pseudonym_is_of_the_key_the_source_and_the_patient() -> None:
    key, other = bytes(32), bytes(31) + b"\1"
    name = pseudonym(key, source="clinic", patient_id="12345")
    assert name == pseudonym(key, source="clinic", patient_id="12345")
    assert name[0] == "P"
    assert len(bytes.fromhex(name[1:])) == 12
    others = {
        name,
        pseudonym(other, source="clinic", patient_id="12345"),
        pseudonym(key, source="clinic1", patient_id="2345"),
        pseudonym(key, source="clinic", patient_id="12346"),
    }
    assert len(others) == 4


def test_a_key_is_made_once_and_its_owner_alone_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "key"
    key = read_key(path)
    assert len(key) == 32
    assert read_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert read_key(tmp_path / "other") != key


def test_two_processes_at_once_get_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        keys = pool.map(read_key, [tmp_path / "key"] * 16, chunksize=1)
    assert len(set(keys)) == 1


@pytest.mark.parametrize("content", [b"", b"12", b"g" * 64, b"\xff" * 64, b"a" * 66])
def test_a_damaged_key_is_named_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        read_key(path)
    assert path.read_bytes() == content


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        read_key(tmp_path)
