"""Which images lie near each other in the network's eyes, and whether they show the same thing."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from dermtune.metrics import estimate, macro, resample, share

_CHUNK = 256
_PERPLEXITY = 30.0  # about as many neighbours as an image is drawn near to


def nearest(
    queries: NDArray[np.floating],
    query_lesions: NDArray[np.object_],
    references: NDArray[np.floating],
    lesions: NDArray[np.object_],
    *,
    count: int,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The references most like each query by the cosine, at most one of a lesion, none of the query's own.

    Args:
        queries: (M, F).
        query_lesions: (M,).
        references: (N, F).
        lesions: (N,).
        count: of neighbours; where there are fewer lesions, those.

    Returns:
        Rows of the references (M, count), the nearest first, and their cosines (M, count).
    """
    names, code = np.unique(lesions.astype(str), return_inverse=True)
    count = min(count, len(names) - 1)
    known = _unit(references)
    rows, cosines = np.empty((len(queries), count), np.intp), np.empty((len(queries), count))
    for top in range(0, len(queries), _CHUNK):
        likeness = _unit(queries[top : top + _CHUNK]) @ known.T
        for row, own in enumerate(likeness, top):
            order = np.argsort(-own, kind="stable")
            order = order[names[code[order]] != str(query_lesions[row])]
            _, first = np.unique(code[order], return_index=True)
            rows[row] = order[np.sort(first)[:count]]
            cosines[row] = own[rows[row]]
    return rows, cosines


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    exact = vectors.astype(np.float64)
    found: NDArray[np.float64] = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
    return found


def map_of(embeddings: NDArray[np.floating], *, seed: int) -> NDArray[np.float64]:
    """Places (M, 2) of images in a plane, those that are alike near each other.

    Args:
        embeddings: (M, F).
        seed: of the search for them.

    Source: van der Maaten and Hinton 2008, Visualizing data using t-SNE; it begins at the first two principal
    components (Kobak and Berens 2019).
    """
    few = 4
    if len(embeddings) < few:
        return np.arange(2.0 * len(embeddings)).reshape(-1, 2)
    perplexity = min(_PERPLEXITY, (len(embeddings) - 1) / 3)
    found = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(_unit(embeddings))
    return np.asarray(found, np.float64)


def measure_agreement(
    spaces: Mapping[str, NDArray[np.int64]],
    labels: NDArray[np.int64],
    groups: NDArray[np.object_],
    known: tuple[NDArray[np.int64], NDArray[np.object_]],
    *,
    classes: tuple[str, ...],
    draws: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """How many of an image's neighbours are of its class, with 95% intervals by bootstrap over lesions.

    Args:
        spaces: by name, the classes (M, count) of each image's neighbours.
        labels: (M,) their own.
        groups: (M,) images that share one are drawn together.
        known: classes and lesions (N,) of the images that were searched.
        classes: K names.
        draws: of the bootstrap.
        rng: where they come from.

    Returns:
        A row a space and class, then `all`, the mean over classes: space, label, images, share, low, high
        (missing where undefined), and `chance`: what neighbours drawn from all lesions would share.
    """
    lesions = pd.DataFrame({"label": known[0], "lesion": known[1]}).drop_duplicates("lesion")
    chance = np.bincount(lesions["label"], minlength=len(classes)) / len(lesions)
    there = [label for label in range(len(classes)) if (labels == label).any()]
    metrics = {
        (space, label): share((found == labels[:, None]).mean(1), labels == label)
        for space, found in spaces.items()
        for label in there
    }
    sampled = resample(metrics, groups, draws=draws, rng=rng)
    rows = []
    for space in spaces:
        for label in there:
            one = estimate(sampled[space, label])
            images = int((labels == label).sum())
            rows.append((space, classes[label], images, one.value, one.low, one.high, chance[label]))
        mean = estimate(macro([sampled[space, label] for label in there]))
        rows.append((space, "all", len(labels), mean.value, mean.low, mean.high, chance[there].mean()))
    return pd.DataFrame(rows, columns=["space", "label", "images", "share", "low", "high", "chance"])
