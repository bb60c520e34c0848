"""Croissant's own reader finds no error in what is written, and can load the images' table by it."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from dermtune.croissant import _MEANINGS, croissant
from dermtune.table import COLUMNS, SPLITS, check_table, write_table

if TYPE_CHECKING:
    import mlcroissant

SUMMARY = {"read": 7, "kept": 6, "quarantined": 1}


def table(**changes: object) -> pd.DataFrame:
    rows = [
        dict.fromkeys(COLUMNS)
        | {
            "image_id": f"I{row}",
            "lesion_id": f"L{row}",
            "group_id": f"G{row}",
            "label": "mel" if row % 2 else "nv",
            "split": SPLITS[row % 3],
            "age": None if row == 0 else 50.0 + row,
            "has_text": False,
            "red": 180.5,
            "green": 120.0,
            "blue": 110.0,
            "source": "made_up",
            "path": f"I{row}.jpg",
            "width": 600,
            "height": 450,
            "shard": "images-000.tar",
            "offset": 512,
            "size": 100,
        }
        for row in range(6)
    ]
    return check_table(pd.DataFrame(rows).assign(**changes))


def sized(data: bytes) -> tuple[int, str]:
    return len(data), hashlib.sha256(data).hexdigest()


def described(images: pd.DataFrame) -> dict[str, object]:
    shards = {"images-001.tar": sized(b"b"), "images-000.tar": sized(b"a")}
    return croissant(images, SUMMARY, table_file=(1, "0" * 64), shards=shards, name="made up")


def read(folder: Path, images: pd.DataFrame) -> "mlcroissant.Dataset":
    """What mlcroissant makes of it; its own use of other packages warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlcroissant  # noqa: PLC0415 (it warns)

        write_table(images, folder / "images.parquet")
        (folder / "images-000.tar").write_bytes(b"a")
        files = {
            "table_file": sized((folder / "images.parquet").read_bytes()),
            "shards": {"images-000.tar": sized(b"a")},
        }
        path = folder / "croissant.json"
        path.write_text(json.dumps(croissant(images, SUMMARY, **files, name="made up")))
        return mlcroissant.Dataset(jsonld=path)


def test_its_own_reader_finds_no_error(tmp_path: Path) -> None:
    images = table(license="CC-BY-NC", attribution="Clinic A", patient_id="P1", group_id="G", split="train")
    metadata = read(tmp_path, images).metadata

    assert not metadata.issues.errors
    # Ingest publishes nothing: there is no date and no version to give.
    assert {warning.split('"')[1].rsplit("/", 1)[-1] for warning in metadata.issues.warnings} == {
        "datePublished",
        "version",
    }
    assert metadata.license[0].name == "CC-BY-NC"
    assert metadata.cite_as == "Images of: Clinic A"
    assert [creator.name for creator in metadata.creators] == ["Clinic A"]
    assert len(metadata.data_limitations) > 1
    assert len(metadata.data_biases) > 1
    assert metadata.personal_sensitive_information[1] == "Patients go by pseudonyms."
    assert [one.id for one in metadata.distribution] == ["images.parquet", "images-000.tar"]


def test_the_table_and_the_splits_can_be_read_by_it(tmp_path: Path) -> None:
    images = table()
    dataset = read(tmp_path, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(dataset.records("images"))
        splits = list(dataset.records("splits"))

    assert [row["images/image_id"].decode() for row in rows] == list(images["image_id"])
    assert [row["images/split"].decode() for row in rows] == list(images["split"])
    assert [row["images/age"] for row in rows[1:]] == [51.0, 52.0, 53.0, 54.0, 55.0]
    assert pd.isna(rows[0]["images/age"])
    assert rows[0]["images/has_text"] is False
    assert rows[0]["images/width"] == 600
    assert rows[0]["images/red"] == pytest.approx(180.5)
    assert rows[0].keys() == {f"images/{column}" for column in COLUMNS}
    assert [(one["splits/name"], one["splits/url"]) for one in splits] == [
        ("train", "cr:TrainingSplit"),
        ("val", "cr:ValidationSplit"),
        ("test", "cr:TestSplit"),
    ]


def test_every_column_is_explained() -> None:
    assert set(_MEANINGS) == set(COLUMNS)


def test_the_same_data_gives_the_same_bytes_whatever_the_order_of_the_shards() -> None:
    first = json.dumps(described(table()))
    assert first == json.dumps(described(table()))
    assert [one["@id"] for one in json.loads(first)["distribution"]] == [
        "images.parquet",
        "images-000.tar",
        "images-001.tar",
    ]


def test_a_licence_is_its_address_or_its_name_and_none_is_made_up() -> None:
    address = "https://creativecommons.org/licenses/by/4.0/"
    licenses = ["CC-0", None, None, address, address, "CC-0"]
    found = described(table(license=licenses))
    assert found["license"] == [{"@type": "sc:CreativeWork", "name": "CC-0"}, address]
    assert any(
        "Of 2 images it is not said under which licence" in one for one in found["rai:dataLimitations"]
    )
    assert not {"license", "creator", "citeAs", "url", "version", "datePublished"} & described(table()).keys()


def test_it_says_what_is_personal() -> None:
    plain = described(table(age=None))["rai:personalSensitiveInformation"]
    assert plain == ["Pictures of skin lesions and their diagnoses, which are data about health."]
    told = described(table(skin_tone="II", has_text=True))["rai:personalSensitiveInformation"]
    assert "with age, skin tone of some of the people" in told[0]
    assert told[1] == "In 6 images letters were found, which may name a person."
