"""What ingest wrote, for machines: MLCommons Croissant, so that other tools can find and load it.

Sources: Croissant 1.0, https://docs.mlcommons.org/croissant/docs/croissant-spec.html, and its vocabulary for
responsible AI (RAI) 1.0. Nothing here depends on the day: what ingest writes has no date, address or version
of publication, and none is made up, though the specification asks for them.
"""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from dermtune.data_card import biases, limitations
from dermtune.labels import lesion_class
from dermtune.table import COLUMNS, SPLITS

TABLE: Final = "images.parquet"
_CONTEXT: Final = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""As the specification gives it, with the prefix of RAI."""
_TYPES: Final = {
    "string": "sc:Text",
    "boolean": "sc:Boolean",
    "int64": "sc:Integer",
    "Float64": "sc:Float",
    "float64": "sc:Float",
}
_SPLIT_TYPES: Final = {"train": "cr:TrainingSplit", "val": "cr:ValidationSplit", "test": "cr:TestSplit"}
_MEANINGS: Final = {
    "image_id": "The image's name, unique in the table.",
    "lesion_id": "Images of one lesion share it.",
    "patient_id": "A pseudonym that images of one patient share, where the source knows the patient.",
    "group_id": "Images that share it (of one lesion or patient, or copies) never part in a split.",
    "label": "The diagnosis.",
    "split": "What the image is for: to learn from (train), to choose by (val), or to measure with (test).",
    "age": "Age of the person in years.",
    "sex": "Sex of the person.",
    "site": "Where on the body the lesion is.",
    "dx_type": "How the diagnosis was confirmed, such as by histology (histo).",
    "skin_tone": "Fitzpatrick's skin type, I to VI, where the source gives it.",
    "license": "The licence under which the image may be used, where the source gives it.",
    "attribution": "Whom to name as the image's origin.",
    "has_mask": "Is the image's row of masks.npy the source's own outline of the lesion?",
    "has_text": "Were letters found in the picture?",
    "red": "Mean red of the image, 0 to 255.",
    "green": "Mean green of the image, 0 to 255.",
    "blue": "Mean blue of the image, 0 to 255.",
    "source": "The data set that the image is of.",
    "path": "The original file, relative to the source's root; for people.",
    "sha256": "SHA-256 of the original file.",
    "width": "Width of the image in pixels.",
    "height": "Height of the image in pixels.",
    "shard": "The tar that holds the image file.",
    "offset": "Where in the tar the image file begins, in bytes.",
    "size": "How long the image file is, in bytes.",
}


def croissant(
    table: pd.DataFrame,
    summary: Mapping[str, Any],
    *,
    table_file: tuple[int, str],
    shards: Mapping[str, tuple[int, str]],
    name: str,
) -> dict[str, Any]:
    """Describe what ingest wrote as Croissant JSON-LD, to lie beside images.parquet as croissant.json.

    Args:
        table: the image table, as `table.check_table` gives it.
        summary: `read, kept, quarantined`, all counts.
        table_file: size in bytes and SHA-256 of images.parquet.
        shards: the same of each tar, by its name.
        name: what the data set is called.
    """
    found = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": ["http://mlcommons.org/croissant/1.0", "http://mlcommons.org/croissant/RAI/1.0"],
        "name": name,
        "description": _description(table, summary),
        "keywords": ["dermoscopy", "skin lesions", "image classification"],
        "isLiveDataset": False,
        "rai:dataLimitations": limitations(table),
        "rai:dataBiases": biases(table),
        "rai:personalSensitiveInformation": _personal(table),
        "distribution": [
            _file(TABLE, "application/x-parquet", *table_file),
            *(_file(shard, "application/x-tar", *shards[shard]) for shard in sorted(shards)),
        ],
        "recordSet": [_splits(), _images(table)],
    }
    if licenses := sorted(table["license"].dropna().unique()):
        found["license"] = [_license(str(one)) for one in licenses]
    if credited := sorted(str(one) for one in table["attribution"].dropna().unique()):
        found["citeAs"] = f"Images of: {'; '.join(credited)}"
        found["creator"] = [{"@type": "sc:Organization", "name": one} for one in credited]
    return found


def _description(table: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    classes = ", ".join(lesion_class(str(label)).title for label in sorted(table["label"].unique()))
    sources = ", ".join(str(source) for source in sorted(table["source"].dropna().unique()))
    return (
        f"{len(table):,} dermoscopic images of {table['lesion_id'].nunique():,} skin lesions, of these"
        f" classes: {classes}. Sources: {sources}. Of {summary['read']:,} images read,"
        f" {summary['quarantined']:,} were set aside. Split by lesion, and by patient where patients are"
        " known, with copies kept together. The image files lie in the tars: the columns shard, offset and"
        f" size of {TABLE} say where."
    )


def _personal(table: pd.DataFrame) -> list[str]:
    given = [column for column in ("age", "sex", "site", "skin_tone") if table[column].notna().any()]
    told = f", with {', '.join(given).replace('_', ' ')} of some of the people" if given else ""
    found = [f"Pictures of skin lesions and their diagnoses, which are data about health{told}."]
    if table["patient_id"].notna().any():
        found.append("Patients go by pseudonyms.")
    if count := int(table["has_text"].sum()):
        found.append(f"In {count:,} images letters were found, which may name a person.")
    return found


def _license(license_: str) -> str | dict[str, str]:
    """Its address, or else its name as the source gives it: which version is meant is not guessed."""
    is_address = license_.startswith(("http://", "https://"))
    return license_ if is_address else {"@type": "sc:CreativeWork", "name": license_}


def _file(name: str, kind: str, size: int, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{size} B",
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _splits() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"},
            # cr:Split alone, as in the specification, is an error to its own reader
            {"@type": "cr:Field", "@id": "splits/url", "name": "url", "dataType": ["sc:URL", "cr:Split"]},
        ],
        "data": [{"splits/name": split, "splits/url": _SPLIT_TYPES[split]} for split in SPLITS],
    }


def _images(table: pd.DataFrame) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "images",
        "name": "images",
        "description": f"{TABLE}: a row an image.",
        "key": {"@id": "images/image_id"},
        "field": [_field(str(column), table) for column in table],
    }


def _field(column: str, table: pd.DataFrame) -> dict[str, Any]:
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"images/{column}",
        "name": column,
        "description": _MEANINGS[column],
        "dataType": _TYPES[COLUMNS[column]],
        "source": {"fileObject": {"@id": TABLE}, "extract": {"column": column}},
    }
    if column == "label":
        titles = (f"{label}: {lesion_class(str(label)).title}" for label in sorted(table["label"].unique()))
        field |= {"description": f"The diagnosis. {'; '.join(titles)}.", "dataType": ["sc:Text", "cr:Label"]}
    if column == "split":
        field["references"] = {"field": {"@id": "splits/name"}}
    return field
