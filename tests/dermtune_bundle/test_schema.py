"""The published schema is that of the code, and agrees with the strict reader."""

import json
from pathlib import Path

import jsonschema
import pytest

from dermtune_bundle.manifest import Manifest
from dermtune_bundle.schema import json_schema

PUBLISHED = Path(__file__).parents[2] / "docs/bundle.schema.json"


def test_what_is_published_is_what_is_read() -> None:
    assert json.loads(PUBLISHED.read_text()) == json_schema(), (
        "run: dermtune schema > docs/bundle.schema.json"
    )


def test_a_bundles_manifest_is_valid_and_a_changed_one_is_not(tiny_manifest: Manifest) -> None:
    values = json.loads(tiny_manifest.to_json())
    jsonschema.validate(values, json_schema())
    for change in ({"more": 1}, {"schema_version": 2}, {"coverage": "much"}, {"classes": [{"name": "mel"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(values | change, json_schema())
