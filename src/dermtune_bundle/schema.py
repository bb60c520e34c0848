"""bundle.json's JSON Schema, made from the dataclasses that read it, so that the two cannot part."""

from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin

from dermtune_bundle.manifest import SCHEMA_VERSION, Manifest

_SCALARS: dict[object, dict[str, Any]] = {
    bool: {"type": "boolean"},
    dict: {"type": "object"},
    float: {"type": "number"},
    int: {"type": "integer"},
    str: {"type": "string"},
}


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of bundle.json in the version that this dermtune reads and writes."""
    schema = _object(Manifest)
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    title = f"bundle.json of a dermtune bundle, version {SCHEMA_VERSION}"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}


def _object(kind: type) -> dict[str, Any]:
    properties = {field.name: _schema(field.type) for field in fields(kind)}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _schema(kind: object) -> dict[str, Any]:
    if isinstance(kind, type) and is_dataclass(kind):
        return _object(kind)
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:
        return {"anyOf": [_schema(arguments[0]), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    return _SCALARS[origin]
