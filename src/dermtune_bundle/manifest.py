"""bundle.json and model.json: what a graph's numbers mean. The dataclasses are the schema."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from sys import float_info
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, get_args, get_origin

import numpy as np
from numpy.typing import NDArray

from dermtune_bundle.errors import BundleError
from dermtune_bundle.quality import Quality

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

SCHEMA_VERSION: Final = 1
MALIGNANT: Final = "malignant"
"""The target that stands for all malignant classes together; no class may be called so."""
NOTICE: Final = (
    "Research use only. Not a medical device: not for diagnosis, nor for deciding on a person's treatment."
)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs with dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@dataclass(frozen=True)
class Diagnosis:
    """A class that the model can give."""

    name: str
    title: str
    malignant: bool
    decision_weight: float = 1.0
    """The class named is that with the largest weight times probability; 1 for all: the most probable."""
    set_threshold: float = 0.0
    """The class is in the prediction set from this probability on; 0: in every set."""


@dataclass(frozen=True)
class InputSpec:
    """What the graph does with an image of any size before the network sees it."""

    size: int
    color: str
    resize: str


@dataclass(frozen=True)
class Calibration:
    """How logits become probabilities, and what it gained on the validation split."""

    method: str
    """`temperature`, `vector` or `isotonic`."""
    logit_scale: tuple[float, ...]
    """(K,) what logits are multiplied by; of a temperature, its inverse for all."""
    logit_shift: tuple[float, ...]
    """(K,) added then."""
    prior_shift: tuple[float, ...]
    """(K,) what would be added without calibration: undoes the class weights of training."""
    nll_before: float | None
    nll_after: float | None


@dataclass(frozen=True)
class Quantization:
    """What 8-bit integers changed, on the validation split, each graph calibrated by itself."""

    auroc_before: float | None
    """Macro, of the graph in float32 …"""
    auroc_after: float | None
    """… and of the one in the bundle."""
    mean_difference: float
    """Of a probability."""
    largest_difference: float


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on one class's probability, or on that of all malignant ones, chosen on validation."""

    name: str
    target: str
    threshold: float
    goal: str
    sensitivity: float | None
    specificity: float | None


@dataclass(frozen=True)
class Limits:
    """Where the model abstains: outside of these lie few images such as those that it was calibrated on."""

    distance: float
    """Largest distance of the graph to the images that it knows."""
    sharpness: float
    """Least sharpness, as `measure_quality` gives it."""
    darkest: float
    """Least brightness."""
    brightest: float
    """Largest brightness."""
    smallest: int
    """Least shorter side, in pixels."""
    false_alarms: float
    """Share of such images that the limits were chosen to flag, at most."""

    REASONS: ClassVar = (
        "unlike the images that the model knows",
        "blurred",
        "too dark",
        "too bright",
        "too small",
    )
    ANY: ClassVar = "any of these"

    def reasons(self, distance: float, quality: Quality) -> tuple[str, ...]:
        """Why the model abstains, in words; none: it does not."""
        outside = (
            distance > self.distance,
            quality.sharpness < self.sharpness,
            quality.brightness < self.darkest,
            quality.brightness > self.brightest,
            quality.side < self.smallest,
        )
        return tuple(reason for reason, is_so in zip(self.REASONS, outside, strict=True) if is_so)


@dataclass(frozen=True)
class GoldenCase:
    """An image in the bundle, and what the graph said of it where the bundle was made."""

    file: str
    """Its name in the bundle."""
    probabilities: tuple[float, ...]
    """(K,)"""


@dataclass(frozen=True, kw_only=True)
class Contract:
    """model.json: what `calibrate` says of the graph that it wrote."""

    classes: tuple[Diagnosis, ...]
    """In the order of the graph's probabilities."""
    input: InputSpec
    quantization: Quantization | None
    """None: the graph computes in float32."""
    calibration: Calibration
    operating_points: tuple[OperatingPoint, ...]
    coverage: float
    """Share of each class's images whose prediction set is to hold their class."""
    limits: Limits
    lineage: dict[str, Any]
    """What the model was made from: backbone, cut, weights, images, seed, versions."""

    @classmethod
    def parse(cls, text: str | bytes, *, source: str) -> Self:
        """Parse JSON strictly: every key known and present, every value of its type and possible.

        Args:
            text: the file's content.
            source: what error messages call the file.

        Raises:
            BundleError: names the file and the key.
        """
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{source}: not valid JSON: {error}") from error
        return cls.from_values(values, source=source)

    @classmethod
    def from_values(cls, values: object, *, source: str) -> Self:
        """As `parse`, of what json.loads gives."""
        try:
            parsed = _parse_object(cls, values, "")
            parsed._check()  # noqa: SLF001 (its own)
        except _KeyProblem as problem:
            raise BundleError(f"{source}: {problem}") from None
        return parsed

    def named(self, probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
        """The class to name, (N,) indices, for probabilities (N, K), by the decision weights."""
        weights = np.array([known.decision_weight for known in self.classes])
        indices: NDArray[np.int64] = (probabilities * weights).argmax(axis=1)
        return indices

    def in_set(self, probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
        """The prediction set, (N, K), of probabilities (N, K); it holds a class at least, the nearest."""
        thresholds = np.array([known.set_threshold for known in self.classes])
        members: NDArray[np.bool_] = probabilities >= thresholds
        empty = ~members.any(axis=1)
        members[empty, (probabilities - thresholds).argmax(axis=1)[empty]] = True
        return members

    def to_json(self) -> str:
        """The file's content, for people to read as well."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _check(self) -> None:
        names = [known.name for known in self.classes]
        if len(names) < 2 or len({*names, MALIGNANT}) <= len(names):  # noqa: PLR2004 (one is no choice)
            raise _KeyProblem("classes", f"expected two or more different names, got {names}")
        for name in ("logit_scale", "logit_shift", "prior_shift"):
            if len(getattr(self.calibration, name)) != len(names):
                raise _KeyProblem(f"calibration.{name}", f"expected {len(names)} numbers, one a class")
        for index, known in enumerate(self.classes):
            if known.decision_weight <= 0:
                raise _KeyProblem(
                    f"classes[{index}].decision_weight", f"expected above 0, got {known.decision_weight}"
                )
        self._check_points(names)
        for key, share in self._shares():
            if not 0 <= share <= 1:
                raise _KeyProblem(key, f"expected a number from 0 to 1, got {share}")

    def _check_points(self, names: list[str]) -> None:
        points = [point.name for point in self.operating_points]
        if len(set(points)) < len(points):
            raise _KeyProblem("operating_points", f"expected different names, got {points}")
        targets = [*names, *([MALIGNANT] if any(known.malignant for known in self.classes) else [])]
        for index, point in enumerate(self.operating_points):
            if point.target not in targets:
                raise _KeyProblem(
                    f"operating_points[{index}].target",
                    f"expected one of {', '.join(targets)}, got {point.target!r}",
                )

    def _shares(self) -> Iterator[tuple[str, float]]:
        """Numbers that are probabilities or shares, by key."""
        yield "coverage", self.coverage
        yield "limits.false_alarms", self.limits.false_alarms
        for index, known in enumerate(self.classes):
            yield f"classes[{index}].set_threshold", known.set_threshold
        for index, point in enumerate(self.operating_points):
            yield f"operating_points[{index}].threshold", point.threshold


@dataclass(frozen=True, kw_only=True)
class Manifest(Contract):
    """bundle.json: the graph's contract, as evaluated."""

    schema_version: int
    name: str
    notice: str
    golden: tuple[GoldenCase, ...]
    """By which `dermtune verify` proves that a machine computes as the one that made the bundle."""
    metrics: dict[str, Any]
    """On the test split, as `evaluate` wrote them."""

    def _check(self) -> None:
        super()._check()
        if not self.notice.strip():
            raise _KeyProblem("notice", "empty; every answer must say what it is not for")
        for index, case in enumerate(self.golden):
            if len(case.probabilities) != len(self.classes):
                raise _KeyProblem(
                    f"golden[{index}].probabilities", f"expected {len(self.classes)} numbers, one a class"
                )

    @classmethod
    def from_values(cls, values: object, *, source: str) -> Self:
        """As `parse`, of what json.loads gives; another schema version is told apart from damage."""
        version = values.get("schema_version") if isinstance(values, dict) else None
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise BundleError(
                f"{source}: schema_version is {version}, and this dermtune reads {SCHEMA_VERSION}; install "
                "the dermtune that wrote the bundle, or fetch a bundle for this one"
            )
        return super().from_values(values, source=source)


class _KeyProblem(Exception):  # noqa: N818 (never leaves this module)
    """A key is missing, unknown, of the wrong type or impossible."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}" if key else problem)


def _parse(kind: object, value: object, key: str) -> object:
    """Hold a JSON value against an annotation: a dataclass, tuple[X, ...], X | None, dict or a scalar."""
    if isinstance(kind, type) and is_dataclass(kind):
        return _parse_object(kind, value, key)
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is UnionType:
        return None if value is None else _parse(arguments[0], value, key)
    if origin is tuple and isinstance(value, list):
        return tuple(_parse(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= float_info.max:
            return float(value)
    elif isinstance(value, str) and not value.isprintable():
        raise _KeyProblem(key, f"expected a text without control characters, got {reprlib.repr(value)}")
    elif type(value) is origin:
        return value
    raise _KeyProblem(key, f"expected {_JSON_NAMES[origin]}, got {reprlib.repr(value)}")


def _parse_object(kind: type[T], value: object, key: str) -> T:
    if not isinstance(value, dict):
        raise _KeyProblem(key, f"expected an object, got {reprlib.repr(value)}")
    prefix = f"{key}." if key else ""
    annotations = {field.name: field.type for field in fields(kind)}
    for name in sorted(annotations.keys() ^ value.keys()):
        raise _KeyProblem(f"{prefix}{name}", "missing" if name in annotations else "unknown key")
    return kind(**{name: _parse(annotations[name], value[name], f"{prefix}{name}") for name in annotations})


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


_JSON_NAMES: dict[object, str] = {
    bool: "true or false",
    dict: "an object",
    float: "a finite number",
    int: "a whole number",
    str: "a text",
    tuple: "a list",
}
