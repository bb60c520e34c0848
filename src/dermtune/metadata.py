"""Does anything but the image tell the diagnosis? A network may learn it from its traces in the image."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeClassifier

from dermtune.metrics import auroc

SUSPICIOUS = 0.70
"""Macro AUROC on validation above which a column is reported: it tells more than it should."""
_ENOUGH = 100  # validation images: of fewer, chance alone makes such areas
_LEAF = 20  # images that a rule must hold for
_FEATURES: Mapping[str, str] = {
    "size": "size of the file",
    "width": "width in pixels",
    "height": "height in pixels",
    "images_of_lesion": "images of the lesion",
    "images_of_patient": "images of the patient",
    "source": "source",
    "dx_type": "how the diagnosis was confirmed",
    "age": "age",
    "sex": "sex",
    "site": "site on the body",
}


def metadata_aurocs(table: pd.DataFrame) -> pd.DataFrame:
    """How well each column of the image table tells the classes apart, by itself.

    A shallow decision tree learns from the training images' column and is asked on validation.

    Args:
        table: the image table, with its splits.

    Returns:
        `column, meaning, auroc`, the highest first; a column with one value only is left out. Age, sex and
        site may well tell something of the diagnosis; the size of a file should not.
    """
    table = table.assign(
        images_of_lesion=table.groupby("lesion_id")["image_id"].transform("size"),
        images_of_patient=table.groupby("patient_id", dropna=True)["image_id"].transform("size"),
    )
    train, val = (table[table["split"] == split] for split in ("train", "val"))
    rows = [
        {"column": column, "meaning": meaning, "auroc": found}
        for column, meaning in _FEATURES.items()
        if (found := _auroc_of(train, val, column)) is not None
    ]
    columns = ["column", "meaning", "auroc"]
    return pd.DataFrame(rows, columns=columns).sort_values("auroc", ascending=False, ignore_index=True)


def suspicious(told: pd.DataFrame, *, images: int) -> pd.DataFrame:
    """The columns that tell more than they should; none where there are too few validation images to say so.

    Args:
        told: as `metadata_aurocs` gives it.
        images: how many validation images there are.
    """
    return told[(told["auroc"] > SUSPICIOUS) & (images >= _ENOUGH)]


def _auroc_of(train: pd.DataFrame, val: pd.DataFrame, column: str) -> float | None:
    if train[column].nunique(dropna=False) < 2 or val["label"].nunique() < 2:  # noqa: PLR2004 (one tells nothing)
        return None
    features = pd.concat([train[column], val[column]])
    if pd.api.types.is_numeric_dtype(features):
        encoded = features.astype("Float64").to_numpy(dtype=float, na_value=-1.0)[:, None]
    else:
        encoded = pd.get_dummies(features.astype("string").fillna("")).to_numpy(float)
    tree = DecisionTreeClassifier(
        max_leaf_nodes=32, min_samples_leaf=_LEAF, class_weight="balanced", random_state=0
    )
    tree.fit(encoded[: len(train)], train["label"].to_numpy(dtype=object))
    chances, labels = tree.predict_proba(encoded[len(train) :]), val["label"].to_numpy(dtype=object)
    areas = [auroc(chances[:, index], labels == name).value for index, name in enumerate(tree.classes_)]
    defined = [area for area in areas if area is not None]
    return float(np.mean(defined)) if defined else None
