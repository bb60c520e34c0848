"""Run a dermtune bundle: open it, checked; read an image; get calibrated probabilities and decisions.

    from dermtune_bundle import Bundle, read_image

    bundle = Bundle.open("bundle")
    prediction = bundle.predict(read_image("lesion.jpg"))
    print(prediction.probabilities, prediction.decisions)

Needs ONNX Runtime, NumPy and Pillow, nothing of the training side. They are imported at first use, so that
`dermtune --help` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dermtune_bundle.bundle import Bundle, Prediction
    from dermtune_bundle.errors import BundleError, DermtuneError, ImageError
    from dermtune_bundle.manifest import Manifest, OperatingPoint
    from dermtune_bundle.predict import read_image

_HOMES = {
    "Bundle": "bundle",
    "BundleError": "errors",
    "DermtuneError": "errors",
    "ImageError": "errors",
    "Manifest": "manifest",
    "OperatingPoint": "manifest",
    "Prediction": "bundle",
    "read_image": "predict",
}

__all__ = [
    "Bundle",
    "BundleError",
    "DermtuneError",
    "ImageError",
    "Manifest",
    "OperatingPoint",
    "Prediction",
    "read_image",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home: object = import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(home, name)
