"""When the model should not answer: images unlike those it knows, blurred, too dark or too bright.

Limits are chosen so that of images such as those of validation, at most a stated share is flagged.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.deployable import NEIGHBOR
from dermtune.errors import DataError
from dermtune.inference import Looked
from dermtune_bundle.manifest import Limits

_MOST_REFERENCES = 1500
_OF_QUALITY = 0.2  # share of the false alarms that each of the limits of quality may cause


def references_of(table: pd.DataFrame) -> NDArray[np.int64]:
    """Rows of the images that new ones are held against: evenly spread, where there are many.

    Args:
        table: the validation images' rows of the image table.

    Raises:
        DataError: there are too few lesions.
    """
    lesions = table["group_id"].nunique()
    if lesions <= NEIGHBOR:
        raise DataError(
            f"calibration: {lesions} validation lesions are too few to know what is usual; re-run ingest"
            " with a larger split.val"
        )
    count = min(len(table), _MOST_REFERENCES)
    return np.linspace(0, len(table) - 1, count).round().astype(np.int64)


def distances_to_others(
    embeddings: NDArray[np.float32], table: pd.DataFrame
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How unlike other lesions' images validation images are, (N,), and the references, (R, F) unit vectors.

    The graph's own distance would be too small: it carries these very images.

    Args:
        embeddings: (N, F), what the graph says of the validation images.
        table: their rows of the image table.

    Raises:
        DataError: there are too few lesions.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    rows = references_of(table)
    reference = unit[rows]
    groups = table["group_id"].to_numpy()
    nearness = unit @ reference.T
    nearness[groups[:, None] == groups[rows]] = -1  # an image to come is none of these lesions
    return 1 - np.sort(nearness, axis=1)[:, -NEIGHBOR], reference


def choose_limits(
    seen: Looked, table: pd.DataFrame, *, false_alarms: float
) -> tuple[Limits, NDArray[np.float32]]:
    """Limits, and the references (F, R), as unit vectors.

    Args:
        seen: what the graph says of N validation images, and their quality.
        table: their rows of the image table.
        false_alarms: the share of them that may be flagged in all.

    Raises:
        DataError: there are too few lesions.
    """
    distances, reference = distances_to_others(seen.embeddings, table)
    share = false_alarms * _OF_QUALITY
    sharpness = np.array([one.sharpness for one in seen.qualities])
    brightness = np.array([one.brightness for one in seen.qualities])
    return Limits(
        distance=-_lowest(-distances, false_alarms - 3 * share),
        sharpness=_lowest(sharpness, share),
        darkest=_lowest(brightness, share),
        brightest=-_lowest(-brightness, share),
        # half as large as any that was seen is another kind of image, or a thumbnail
        smallest=min(one.side for one in seen.qualities) // 2,
        false_alarms=false_alarms,
    ), reference.T.astype(np.float32)


def _lowest(values: NDArray[np.floating], share: float) -> float:
    """What an image to come falls below with a chance of at most `share`; of few images, the lowest seen.

    It is as likely to fall into any of the gaps between the values, and beyond them (Vovk et al., Algorithmic
    Learning in a Random World, 2005).
    """
    rank = max(int((len(values) + 1) * share + 1e-9), 1)
    return float(np.sort(values)[rank - 1])
