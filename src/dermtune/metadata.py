"""Does anything but the image tell the diagnosis? A network may learn it from its traces in the image."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeClassifier

from dermtune.labels import lesion_class
from dermtune.metrics import auroc
from dermtune_bundle.manifest import MALIGNANT

SUSPICIOUS = 0.70
"""AUROC on validation above which a column is reported: it tells more than it should."""
_ENOUGH = 30  # validation images of what it tells, and others: of fewer, chance alone makes such areas
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
        `column, meaning, auroc` (mean of the classes), `told` (the class, or `malignant`, that it tells best,
        of those with images enough to say so) and `highest` (the AUROC of that), the highest first; a column
        with one value only is left out. Age, sex and site may well tell something of the diagnosis; the size
        of a file should not.
    """
    table = table.assign(
        images_of_lesion=table.groupby("lesion_id")["image_id"].transform("size"),
        images_of_patient=table.groupby("patient_id", dropna=True)["image_id"].transform("size"),
    )
    train, val = (table[table["split"] == split] for split in ("train", "val"))
    rows = [
        {"column": column, "meaning": meaning, **found}
        for column, meaning in _FEATURES.items()
        if (found := _aurocs_of(train, val, column)) is not None
    ]
    columns = ["column", "meaning", "auroc", "told", "highest"]
    return pd.DataFrame(rows, columns=columns).sort_values("auroc", ascending=False, ignore_index=True)


def suspicious(told: pd.DataFrame) -> pd.DataFrame:
    """The columns that tell more than they should.

    Args:
        told: as `metadata_aurocs` gives it.
    """
    return told[told["highest"] > SUSPICIOUS]


def _aurocs_of(train: pd.DataFrame, val: pd.DataFrame, column: str) -> dict[str, object] | None:
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
    told = {str(name): (chances[:, index], labels == name) for index, name in enumerate(tree.classes_)}
    areas = [auroc(*one).value for one in told.values()]
    defined = [area for area in areas if area is not None]
    malignant = np.array([lesion_class(name).malignant for name in told])
    if malignant.any() and not malignant.all():
        is_malignant = np.isin(labels, [name for name, bad in zip(told, malignant, strict=True) if bad])
        told[MALIGNANT] = (chances[:, malignant].sum(axis=1), is_malignant)
    enough = {
        name: auroc(*one).value or 0.0
        for name, one in told.items()
        if min(one[1].sum(), (~one[1]).sum()) >= _ENOUGH
    }
    if not defined:
        return None
    best = max(enough, key=lambda name: enough[name], default=None)
    return {"auroc": float(np.mean(defined)), "told": best, "highest": enough[best] if best else None}
