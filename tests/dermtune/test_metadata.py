import numpy as np
import pandas as pd
import pytest

from dermtune.metadata import SUSPICIOUS, metadata_aurocs, suspicious

COUNT = 600


def make(**columns: object) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    labels = rng.choice(["mel", "nv"], COUNT)
    table = pd.DataFrame(
        {
            "image_id": [f"I{row}" for row in range(COUNT)],
            "lesion_id": [f"L{row}" for row in range(COUNT)],
            "patient_id": pd.array([None] * COUNT, "string"),
            "label": labels,
            "split": np.where(np.arange(COUNT) % 3 == 0, "val", "train"),
            "size": rng.integers(10_000, 90_000, COUNT),
            "width": 600,
            "height": 450,
            "source": "one",
            "dx_type": pd.array([None] * COUNT, "string"),
            "age": pd.array(rng.integers(20, 90, COUNT).astype(float), "Float64"),
            "sex": rng.choice(["female", "male"], COUNT),
            "site": rng.choice(["back", "face", "arm"], COUNT),
        }
    )
    return table.assign(**columns)


def test_a_column_that_says_nothing_is_near_one_half() -> None:
    found = metadata_aurocs(make()).set_index("column")["auroc"]
    assert set(found.index) == {"size", "age", "sex", "site"}, "one value tells nothing"
    assert found.max() < 0.6


def test_a_file_size_that_tells_the_diagnosis_is_found() -> None:
    plain = make()
    leaking = plain.assign(size=plain["size"] + 60_000 * (plain["label"] == "mel"))
    told = metadata_aurocs(leaking)
    first = told.iloc[0]
    assert first["column"] == "size"
    assert first["auroc"] > SUSPICIOUS
    assert first["told"] in {"mel", "nv", "malignant"}
    assert suspicious(told)["column"].tolist() == ["size"]
    assert suspicious(metadata_aurocs(leaking[:60])).empty, "too few to say so"


def test_a_column_that_tells_one_class_of_five_is_found() -> None:
    rng = np.random.default_rng(2)
    labels = rng.choice(["mel", "nv", "bkl", "bcc", "df"], COUNT)
    size = rng.integers(10_000, 60_000, COUNT) + 90_000 * (labels == "df")
    (row,) = suspicious(metadata_aurocs(make(label=labels, size=size))).itertuples()
    assert (row.column, row.told) == ("size", "df")
    assert row.highest > 0.95
    assert row.auroc < SUSPICIOUS, "the mean over classes would hide it"


def test_a_source_of_one_class_is_found() -> None:
    plain = make()
    leaking = plain.assign(source=np.where(plain["label"] == "mel", "clinic", "archive"))
    first = metadata_aurocs(leaking).iloc[0]
    assert first["column"] == "source"
    assert first["auroc"] == first["highest"] == pytest.approx(1)


def test_how_many_images_a_patient_has_may_tell_it_too() -> None:
    plain = make()
    alone = np.array([f"P{row}" for row in range(COUNT)], dtype=object)
    shared = np.array([f"Q{row // 12}" for row in range(COUNT)], dtype=object)
    patients = np.where(plain["label"] == "mel", alone, shared)
    found = metadata_aurocs(plain.assign(patient_id=pd.array(patients, "string"))).set_index("column")
    assert found.loc["images_of_patient", "auroc"] > 0.9
