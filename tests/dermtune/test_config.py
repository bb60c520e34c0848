from pathlib import Path

import pytest
from pydantic import ValidationError

from dermtune.config import BackboneConfig, Config, read_yaml
from dermtune.errors import ConfigError


class Recipe(Config):
    """A section."""

    rate: float
    """How fast."""


def test_a_section_is_frozen_strict_and_says_what_its_fields_are() -> None:
    recipe = Recipe(rate=1)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.rate = 2.0  # type: ignore[misc]
    for wrong in ({"rate": "1"}, {"rate": float("inf")}, {"rate": 1.0, "speed": 1.0}):
        with pytest.raises(ValidationError):
            Recipe.model_validate(wrong)
    assert Recipe.model_fields["rate"].description == "How fast."


def test_every_field_of_the_shared_section_has_a_description_or_says_it_by_its_name() -> None:
    assert all(field.description for field in BackboneConfig.model_fields.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "expected sections"),
        ("", "expected sections"),
        (None, "No such file"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_params_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "params.yaml")
