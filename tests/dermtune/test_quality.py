import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from dermtune.errors import SourceError
from dermtune.quality import (
    BY_CHOICE,
    NO_FILE,
    REPEATED,
    CheckedImage,
    check_image,
    check_images,
    check_listing,
    refuse_bad_source,
)
from dermtune.sources import SourceImage


def encoded(level: int | None = None, size: int = 64) -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (size, size + 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise if level is None else np.full_like(noise, level)).save(buffer, "PNG")
    return buffer.getvalue()


def fail(error: type[OSError]) -> bytes:
    raise error(13, "Permission denied")


def animated() -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (2, 64, 64, 3), dtype=np.uint8)
    first, second = map(Image.fromarray, noise)
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", save_all=True, append_images=[second])
    return buffer.getvalue()


def image(
    content: object = None, *, image_id: str = "I1", label: str = "nv", lesion_id: str = "L1"
) -> SourceImage:
    return SourceImage(image_id, lesion_id, label, "I1.png", content or partial(encoded))  # type: ignore[arg-type]


def test_a_good_image_keeps_its_bytes_and_gets_its_facts() -> None:
    checked = check_image(image())
    assert isinstance(checked, CheckedImage)
    assert checked.data == encoded()
    assert (checked.width, checked.height, len(checked.sha256)) == (84, 64, 64)
    assert checked.suffix == ".png"
    assert all(120 < mean < 135 for mean in checked.colour)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (image(partial(fail, FileNotFoundError)), NO_FILE),
        (image(partial(fail, PermissionError)), "cannot be read: Permission denied"),
        (image(bytes), "empty"),
        (image(partial(bytes, 100)), "not a JPEG"),
        (image(partial(encoded, 200)), "blank"),
        (image(partial(encoded, size=8)), "too small"),
        (image(animated), "holds 2 pictures"),
    ],
)
def test_a_bad_image_gets_a_reason(bad: SourceImage, reason: str) -> None:
    assert reason in str(check_image(bad))


def test_every_image_is_checked_in_order() -> None:
    images = [image(), image(bytes, image_id="I2"), image(image_id="I3")]
    checks = list(check_images(images))
    assert [isinstance(checked, CheckedImage) for checked in checks] == [True, False, True]


@pytest.mark.parametrize(
    ("listed", "reasons"),
    [
        ([image(), image(image_id="I2")], [None, None]),
        ([image(label="")], ["no label"]),
        ([image(image_id="../x")], ["its id has characters"]),
        ([image(image_id="x" * 101)], ["its id has characters"]),
        ([image(lesion_id="")], ["no lesion_id"]),
        ([image(), image()], [None, REPEATED]),
        ([image(), image(image_id="i1")], [None, "its id differs from another's in case alone"]),
        ([image(image_id="ä"), image(image_id="Ä", lesion_id="L2")], [None, "its id differs"]),
        (
            [image(), image(label="mel", lesion_id="L2"), image(image_id="I3", lesion_id="L3")],
            ["its id occurs with several diagnoses: mel, nv"] * 2 + [None],
        ),
        (
            [image(), image(image_id="I2", label="mel"), image(image_id="I3", lesion_id="L3")],
            ["its lesion has several diagnoses: mel, nv"] * 2 + [None],
        ),
        ([image(), image(image_id="I2", label="")], [None, "no label"]),
    ],
)
def test_what_the_listing_says_is_checked(listed: list[SourceImage], reasons: list[str | None]) -> None:
    for found, expected in zip(check_listing(listed), reasons, strict=True):
        assert (found or "").startswith(expected or "")
        assert (found is None) == (expected is None)


def test_too_many_unusable_files_stop_the_run_with_examples() -> None:
    bad = [{"path": "a.jpg", "reason": "truncated"}]
    refuse_bad_source(99, bad, allowed=0.05)
    with pytest.raises(SourceError, match=r"1 of 10 files are unusable.*a\.jpg: truncated"):
        refuse_bad_source(9, bad, allowed=0.05)


@pytest.mark.parametrize("reason", [f"{BY_CHOICE}its licence is not said", REPEATED])
def test_what_is_left_out_by_choice_is_no_fault_of_the_source(reason: str) -> None:
    refuse_bad_source(1, [{"path": "a.jpg", "reason": reason}] * 9, allowed=0)


def test_files_that_are_merely_missing_do_not_stop_the_run_unless_nothing_is_left() -> None:
    missing = [{"path": f"{number}.jpg", "reason": NO_FILE} for number in range(98)]
    refuse_bad_source(102, missing, allowed=0.05)
    with pytest.raises(SourceError, match="98 listed ones missing"):
        refuse_bad_source(0, missing, allowed=0.05)


def test_an_image_that_is_left_out_does_not_stand_in_the_way_of_its_copy() -> None:
    assert check_listing([image(), image()], ["left out", None]) == ["left out", None]
    assert check_listing([image(label=""), image()]) == ["no label", None]
