"""A bundle opens only whole and unchanged, and then answers with what its manifest says."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import dermtune_bundle
from dermtune_bundle.bundle import CHECKSUMS, Bundle, checksums, write_bundle
from dermtune_bundle.cases import Cases
from dermtune_bundle.errors import BundleError
from dermtune_bundle.manifest import Manifest, OperatingPoint

MakeGraph = Callable[..., bytes]
FILES = ("model.onnx", "bundle.json", "MODEL_CARD.md", CHECKSUMS)


def plain(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    return np.full((40, 56, 3), (red, green, blue), np.uint8)


def test_a_prediction_has_probabilities_malignancy_class_and_decisions(tiny_bundle: Path) -> None:
    prediction = Bundle.open(tiny_bundle).predict(plain(200, 100, 0))
    e = np.exp([2.0, 1.0, 0.0])
    expected = e / e.sum()
    assert prediction.probabilities == pytest.approx(dict(zip(["mel", "nv", "bcc"], expected, strict=True)))
    assert prediction.malignant_probability == pytest.approx(expected[0] + expected[2])
    assert prediction.predicted == "mel"
    assert prediction.decisions == {"mel": True}
    assert Bundle.open(tiny_bundle, threads=1).predict(plain(100, 200, 0)).decisions == {"mel": False}


def test_a_probability_equal_to_the_threshold_says_yes(
    tmp_path: Path, make_graph: MakeGraph, tiny_manifest: Manifest
) -> None:
    exactly = float(np.float32(1 / 3))
    points = (
        OperatingPoint("at", "mel", exactly, "", None, None),
        OperatingPoint("above", "mel", float(np.nextafter(exactly, 1)), "", None, None),
    )
    manifest = replace(tiny_manifest, operating_points=points)
    write_bundle(tmp_path, model=make_graph(), manifest=manifest, card="")
    prediction = Bundle.open(tmp_path).predict(plain(0, 0, 0))
    assert prediction.probabilities["mel"] == exactly
    assert prediction.decisions == {"at": True, "above": False}


def test_the_version_is_the_hash_of_the_checksums(tiny_bundle: Path) -> None:
    expected = hashlib.sha256((tiny_bundle / CHECKSUMS).read_bytes()).hexdigest()
    assert Bundle.open(str(tiny_bundle)).version == expected


def test_sha256sum_agrees_with_the_checksums(tiny_bundle: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=tiny_bundle, check=True)


def test_writing_twice_gives_the_same_version(
    tmp_path: Path, tiny_bundle: Path, tiny_manifest: Manifest, tiny_golden: bytes
) -> None:
    model = (tiny_bundle / "model.onnx").read_bytes()
    files = {"golden-0.png": tiny_golden}
    write_bundle(
        tmp_path / "again", model=model, manifest=tiny_manifest, card="# Model card: tiny\n", further=files
    )
    assert Bundle.open(tmp_path / "again").version == Bundle.open(tiny_bundle).version


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_bit_anywhere_is_refused_with_a_files_name(tiny_bundle: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    with TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(tiny_bundle, temporary, dirs_exist_ok=True))
        content = bytearray((folder / name).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        (folder / name).write_bytes(content)
        with pytest.raises(BundleError) as caught:
            Bundle.open(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        Bundle.open(tiny_bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_link_is_refused_even_to_the_same_bytes(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle / name).rename(tiny_bundle.parent / name)
    (tiny_bundle / name).symlink_to(tiny_bundle.parent / name)
    with pytest.raises(BundleError, match=f"{name}: is a link or no regular file"):
        Bundle.open(tiny_bundle)


def test_a_pipe_or_folder_in_a_files_place_is_refused_without_waiting(tiny_bundle: Path) -> None:
    (tiny_bundle / "MODEL_CARD.md").unlink()
    os.mkfifo(tiny_bundle / "MODEL_CARD.md")
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md: is a link or no regular file"):
        Bundle.open(tiny_bundle)


def test_an_unreadable_file_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # tests may run as root, whom no mode stops
    with pytest.raises(BundleError, match="Permission denied"):
        Bundle.open(tiny_bundle)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "weights.bin"])
def test_an_added_file_is_named(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle / name).write_text("x")
    with pytest.raises(BundleError, match=f"{name}: not listed in SHA256SUMS"):
        Bundle.open(tiny_bundle)


def test_a_path_that_is_no_folder_says_what_a_bundle_is(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="a bundle is a folder or"):
        Bundle.open(tiny_bundle / "absent")
    with pytest.raises(BundleError, match=r"model\.onnx: no \.zip that can be read"):
        Bundle.open(tiny_bundle / "model.onnx")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/file", "..", ".hidden", "a b", CHECKSUMS])
def test_a_name_that_could_lead_elsewhere_is_refused(tiny_bundle: Path, name: str) -> None:
    with (tiny_bundle / CHECKSUMS).open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(BundleError, match="SHA256SUMS: line 5 is not"):
        Bundle.open(tiny_bundle)


def test_a_name_listed_twice_is_refused(tiny_bundle: Path) -> None:
    text = (tiny_bundle / CHECKSUMS).read_text()
    (tiny_bundle / CHECKSUMS).write_text(text + text)
    with pytest.raises(BundleError, match="SHA256SUMS: line 5 is not"):
        Bundle.open(tiny_bundle)


def test_checksums_that_leave_out_a_file_are_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / CHECKSUMS).write_text(checksums({"model.onnx": (tiny_bundle / "model.onnx").read_bytes()}))
    with pytest.raises(BundleError, match=r"MODEL_CARD\.md: not listed in SHA256SUMS"):
        Bundle.open(tiny_bundle)


@pytest.mark.parametrize("name", FILES[:3])
def test_a_bundle_without_what_every_bundle_has_is_refused(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle / name).unlink()
    left = {path.name: path.read_bytes() for path in tiny_bundle.iterdir() if path.name != CHECKSUMS}
    (tiny_bundle / CHECKSUMS).write_text(checksums(left))
    with pytest.raises(BundleError, match=f"{name}: missing; export the bundle again"):
        Bundle.open(tiny_bundle)


def test_golden_cases_prove_that_this_machine_computes_alike(
    tiny_bundle: Path, tmp_path: Path, tiny_manifest: Manifest, make_graph: MakeGraph, tiny_golden: bytes
) -> None:
    assert Bundle.open(tiny_bundle).check_golden() < 1e-5
    (case,) = tiny_manifest.golden
    elsewhere = replace(case, probabilities=(case.probabilities[0] + 2e-4, *case.probabilities[1:]))
    for name, cases, images in (
        ("differs", (elsewhere,), {"golden-0.png": tiny_golden}),
        ("absent", (case,), {}),
    ):
        manifest = replace(tiny_manifest, golden=cases)
        write_bundle(tmp_path / name, model=make_graph(), manifest=manifest, card="", further=images)
        with pytest.raises(BundleError, match=r"golden-0\.png"):
            Bundle.open(tmp_path / name).check_golden()


def test_a_graph_with_another_number_of_classes_is_refused(
    tmp_path: Path, make_graph: MakeGraph, tiny_manifest: Manifest
) -> None:
    write_bundle(tmp_path, model=make_graph(classes=2), manifest=tiny_manifest, card="")
    with pytest.raises(BundleError, match=r"gives 2 probabilities, but bundle\.json names 3 classes"):
        Bundle.open(tmp_path)


def test_a_bad_manifest_is_named_with_its_key(tiny_bundle: Path) -> None:
    values = json.loads((tiny_bundle / "bundle.json").read_text())
    values["input"]["size"] = "large"
    (tiny_bundle / "bundle.json").write_text(json.dumps(values))
    names = ("model.onnx", "bundle.json", "MODEL_CARD.md", "golden-0.png")
    (tiny_bundle / CHECKSUMS).write_text(
        checksums({name: (tiny_bundle / name).read_bytes() for name in names})
    )
    with pytest.raises(BundleError, match=r"bundle\.json: input\.size: expected a whole number"):
        Bundle.open(tiny_bundle)


def test_the_package_offers_what_it_lists(tiny_bundle: Path) -> None:
    assert {getattr(dermtune_bundle, name).__name__ for name in dermtune_bundle.__all__} == set(
        dermtune_bundle.__all__
    )
    assert dermtune_bundle.Bundle.open(tiny_bundle).manifest.name == "tiny"
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = dermtune_bundle.absent


def test_cases_of_another_graph_are_refused(tiny_bundle: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    cases = Cases(np.eye(2, dtype=np.float32), ["mel", "nv"], None, None)
    write_bundle(
        tiny_bundle,
        model=files["model.onnx"],
        manifest=Bundle.open(tiny_bundle).manifest,
        card="x",
        further={"golden-0.png": files["golden-0.png"]} | cases.to_files(),
    )
    with pytest.raises(BundleError, match=r"cases\.npy: of another graph than model\.onnx"):
        Bundle.open(tiny_bundle)
