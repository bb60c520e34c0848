"""Golden cases: drawn images that travel in a bundle, with what the graph says of them here."""

import io

from PIL import Image

from dermtune.sources.synthetic import synthetic
from dermtune_bundle.decode import decode
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import GoldenCase

_SEED = 20_26


def golden_cases(graph: Graph, *, count: int) -> tuple[tuple[GoldenCase, ...], dict[str, bytes]]:
    """Draw lesions, one a class as far as they go, and run them: no patient's image leaves in a bundle.

    Args:
        graph: the deployable graph.
        count: of images.

    Returns:
        The cases, and their images by file name: PNG, so that no decoder's rounding is in the comparison.
    """
    by_class = {image.label: image for image in synthetic(lesions=100, seed=_SEED)}
    cases, files = [], {}
    for index, image in enumerate(list(by_class.values())[:count]):
        pixels = decode(image.content(), name=image.image_id)
        name, file = f"golden-{index}.png", io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files[name] = file.getvalue()
        cases.append(GoldenCase(name, tuple(graph.run(pixels).probabilities.tolist())))
    return tuple(cases), files
