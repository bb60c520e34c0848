"""How far colours and places alone go: a linear probe on raw pixels against the fine-tuned network.

    python benchmarks/raw_pixels.py [--data data]

Same lesions, same splits: the probe learns from the training images, its strength is chosen on validation,
and it is read on the test images; the network's figures there are those that `dvc repro` wrote.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dermtune.shards import PackedImages, places
from dermtune.table import classes_of, read_table
from dermtune_bundle.decode import resize

SIDE = 32  # pixels


def main() -> None:
    """Print macro AUROC and balanced accuracy of both on the test split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    data = parser.parse_args().data
    table = read_table(data / "ingest/images.parquet")
    packed = PackedImages(data / "ingest")
    pixels = np.array([resize(packed.decode(place), SIDE).ravel() for place in places(table)]) / 255
    names = classes_of(table)

    def rows(split: str) -> tuple[np.ndarray, pd.Series]:
        chosen = (table["split"] == split).to_numpy()
        return pixels[chosen], table["label"][chosen]

    def area(probe: LogisticRegression, split: str) -> float:
        features, labels = rows(split)
        chances = probe.predict_proba(features)
        areas = [roc_auc_score(labels == name, chances[:, index]) for index, name in enumerate(names)]
        return float(np.mean(areas))

    strengths = (1e-5, 1e-4, 1e-3, 1e-2)
    probes = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500, class_weight="balanced"))
        for c in strengths
    ]
    best = max((probe.fit(*rows("train")) for probe in probes), key=lambda probe: area(probe, "val"))
    features, labels = rows("test")
    metrics = json.loads((data / "evaluate/headline.json").read_text())
    print(f"{'':24}AUROC, macro   balanced accuracy")
    found = balanced_accuracy_score(labels, best.predict(features))
    print(f"linear probe on pixels  {area(best, 'test'):.3f}          {found:.3f}")
    print(f"fine-tuned network      {metrics['auroc_macro']:.3f}          {metrics['balanced_accuracy']:.3f}")
    print("of the areas above the ROC curves, where 0 is perfect:")
    print(f"ratio: {(1 - area(best, 'test')) / (1 - metrics['auroc_macro']):.1f}")


if __name__ == "__main__":
    main()
