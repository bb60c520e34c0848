"""bundle.json is parsed strictly: each bad key is named, with what was expected."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from dermtune_bundle.errors import BundleError
from dermtune_bundle.manifest import Contract, Limits, Manifest
from dermtune_bundle.quality import Quality

POINT = {
    "name": "mel",
    "target": "mel",
    "threshold": 0.5,
    "goal": "",
    "sensitivity": None,
    "specificity": None,
}
CHANGES: list[tuple[list[str | int], object, str]] = [
    (["name"], None, "name: expected a text, got None"),
    (["name"], 7, "name: expected a text, got 7"),
    (["surprise"], 1, "surprise: unknown key"),
    (["classes"], {}, "classes: expected a list, got {}"),
    (["classes"], [], "classes: expected two or more different names"),
    (["classes", 0], "mel", r"classes\[0\]: expected an object, got 'mel'"),
    (["classes", 0, "malignant"], 1, r"classes\[0\]\.malignant: expected true or false, got 1"),
    (["classes", 1, "name"], "mel", "classes: expected two or more different names"),
    (["input", "size"], 224.0, r"input\.size: expected a whole number, got 224\.0"),
    (["input", "size"], True, r"input\.size: expected a whole number, got True"),
    (["limits", "distance"], True, r"limits\.distance: expected a finite number, got True"),
    (["limits", "distance"], "1", r"limits\.distance: expected a finite number, got '1'"),
    (
        ["limits", "distance"],
        10**400,
        r"limits\.distance: expected a finite number, got 1000",
    ),
    (["limits", "distance"], None, r"limits\.distance: expected a finite number, got None"),
    (
        ["operating_points", 0, "target"],
        "xyz",
        r"operating_points\[0\]\.target: expected one of mel, nv, bcc, malignant, got 'xyz'",
    ),
    (
        ["operating_points", 0, "threshold"],
        1.5,
        r"operating_points\[0\]\.threshold: expected a number from 0 to 1",
    ),
    (["coverage"], -0.1, r"coverage: expected a number from 0 to 1, got -0\.1"),
    (["limits", "false_alarms"], 2, r"limits\.false_alarms: expected a number from 0 to 1, got 2"),
    (["classes", 2, "set_threshold"], 1.01, r"classes\[2\]\.set_threshold: expected a number from 0 to 1"),
    (["classes", 1, "name"], "malignant", "classes: expected two or more different names"),
    (["calibration", "logit_scale"], [1], r"calibration\.logit_scale: expected 3 numbers, one a class"),
    (
        ["operating_points"],
        [POINT, POINT],
        "operating_points: expected different names",
    ),
    (["notice"], " ", "notice: empty; every answer must say what it is not for"),
    (["name"], "x\nsigned by: us", "name: expected a text without control characters"),
    (["lineage"], [], r"lineage: expected an object, got \[\]"),
    (["schema_version"], 2, "schema_version is 2, and this dermtune reads 1; install the dermtune that"),
    (["schema_version"], "1", "schema_version: expected a whole number, got '1'"),
]


@pytest.mark.parametrize(("path", "value", "message"), CHANGES)
def test_a_bad_value_is_named(
    tiny_manifest: Manifest, path: list[str | int], value: object, message: str
) -> None:
    values: Any = json.loads(tiny_manifest.to_json())
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BundleError, match=f"^x.json: {message}"):
        Manifest.parse(json.dumps(values), source="x.json")


@pytest.mark.parametrize("key", ["name", "metrics", "classes", "notice", "schema_version"])
def test_a_missing_key_is_named(tiny_manifest: Manifest, key: str) -> None:
    values = json.loads(tiny_manifest.to_json())
    del values[key]
    with pytest.raises(BundleError, match=f"^x.json: {key}: missing"):
        Manifest.parse(json.dumps(values), source="x.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', b"\xff\xfe\xfa", "[" * 100_000, '{"name": NaN}'])
def test_what_is_no_object_of_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(BundleError, match=r"^x\.json: (not valid JSON|expected an object)"):
        Manifest.parse(text, source="x.json")


def test_a_manifest_survives_being_written_and_read(tiny_manifest: Manifest) -> None:
    assert Manifest.parse(tiny_manifest.to_json(), source="x.json") == tiny_manifest


def test_a_contract_is_the_manifest_without_its_release(tiny_manifest: Manifest) -> None:
    release = ("schema_version", "name", "notice", "golden", "metrics")
    values = {key: value for key, value in asdict(tiny_manifest).items() if key not in release}
    contract = Contract.parse(json.dumps(values), source="model.json")
    assert contract.classes == tiny_manifest.classes
    assert Contract.parse(contract.to_json(), source="model.json") == contract


def test_whole_numbers_are_numbers_and_undefined_ones_may_be_null(tiny_manifest: Manifest) -> None:
    values = json.loads(tiny_manifest.to_json())
    values["calibration"] |= {"method": "none", "nll_before": None, "nll_after": 2}
    calibration = Manifest.parse(json.dumps(values), source="x.json").calibration
    assert calibration.nll_before is None
    assert isinstance(calibration.nll_after, float)


def test_a_prediction_set_is_what_cannot_be_ruled_out_and_never_empty(tiny_manifest: Manifest) -> None:
    thresholds = (0.1, 0.5, 0.4)
    pairs = zip(tiny_manifest.classes, thresholds, strict=True)
    manifest = replace(tiny_manifest, classes=tuple(replace(a, set_threshold=b) for a, b in pairs))
    found = manifest.in_set(np.array([[0.1, 0.5, 0.4], [0.05, 0.6, 0.35], [0.09, 0.46, 0.35]]))
    assert found.tolist() == [[True, True, True], [False, True, False], [True, False, False]]


def test_the_limits_say_why_an_image_is_not_judged() -> None:
    limits = Limits(
        distance=0.5, sharpness=3.0, darkest=40.0, brightest=220.0, smallest=32, false_alarms=0.05
    )
    assert limits.reasons(0.5, Quality(3.0, 40.0, 150)) == ()
    assert limits.reasons(0.6, Quality(2.0, 30.0, 150)) == (
        "unlike the images that the model knows",
        "blurred",
        "too dark",
    )
    assert limits.reasons(0.1, Quality(9.0, 230.0, 150)) == ("too bright",)
    assert limits.reasons(0.1, Quality(9.0, 120.0, 31)) == ("too small",)
