import hashlib
import json
import pickle
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_sample_image

from dermtune.appearance import MASKS, unpack_mask
from dermtune.engine import ComputeConfig
from dermtune.errors import ConfigError, DataError, SourceError
from dermtune.params import Params
from dermtune.places import Place
from dermtune.quality import check_image
from dermtune.shards import PackedImages, open_array
from dermtune.sources import SourceImage
from dermtune.sources.listing import list_images
from dermtune.splits import SplitConfig
from dermtune.stages import ingest as stage
from dermtune.stages.ingest import IngestConfig, ingest
from dermtune.table import read_table


def write_ham10000(folder: Path, lesions: int = 60) -> None:
    """HAM10000's official layout with noise for images: two classes, two images a lesion."""
    rng = np.random.default_rng(0)
    images = folder / "HAM10000_images_part_1"
    images.mkdir(parents=True)
    rows = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for number in range(2 * lesions):
        name = f"ISIC_{number:07d}"
        Image.fromarray(rng.integers(0, 255, (36, 48, 3), dtype=np.uint8)).save(images / f"{name}.jpg")
        label = "mel" if number // 2 % 3 == 0 else "nv"
        rows.append(f"HAM_{number // 2:07d},{name},{label},histo,50,male,back")
    (folder / "HAM10000_metadata.csv").write_text("\n".join(rows) + "\n")


def config(params: Params, folder: Path, **changes: object) -> IngestConfig:
    values = params.ingest.model_dump() | {"source": "ham10000", "path": str(folder)} | changes
    return IngestConfig.model_validate(values)


def test_every_image_listed_is_kept_or_set_aside_with_a_reason(params: Params, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_ham10000(source)
    images = source / "HAM10000_images_part_1"
    (images / "ISIC_0000003.jpg").write_bytes(b"no image")
    (images / "ISIC_0000004.jpg").unlink()
    (images / "ISIC_0000005.jpg").write_bytes((images / "ISIC_0000006.jpg").read_bytes()[:400])

    out.mkdir()
    (out / ".images-000-killed.tar").touch()
    ingest(config(params, source), seed=1, out=out)
    assert not (out / ".images-000-killed.tar").exists()

    table, quarantine = read_table(out / "images.parquet"), pd.read_parquet(out / "quarantine.parquet")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["read"], summary["kept"], summary["quarantined"]) == (120, len(table), len(quarantine))
    assert set(quarantine["image_id"]) == {"ISIC_0000003", "ISIC_0000004", "ISIC_0000005"}
    assert quarantine["reason"].str.len().min() > 0
    assert set(table["image_id"]) | set(quarantine["image_id"]) == {f"ISIC_{n:07d}" for n in range(120)}


def test_the_original_bytes_are_packed_and_found_again(params: Params, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_ham10000(source)
    ingest(config(params, source), seed=1, out=out)
    packed = PackedImages(out)
    for row in read_table(out / "images.parquet").itertuples():
        original = (source / str(row.path)).read_bytes()
        assert packed.read(str(row.shard), int(row.offset), int(row.size)) == original
        assert row.sha256 == hashlib.sha256(original).hexdigest()


def test_labels_are_mapped(params: Params, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_ham10000(source)
    ingest(config(params, source, label_map={"nv": "bkl"}), seed=1, out=out)
    assert set(read_table(out / "images.parquet")["label"]) == {"mel", "bkl"}


def test_a_label_map_that_names_no_label_of_the_source_is_refused(params: Params, tmp_path: Path) -> None:
    write_ham10000(tmp_path / "source")
    with pytest.raises(ConfigError, match=r"ingest\.label_map: the source has no label 'Nv'; .* mel, nv"):
        ingest(config(params, tmp_path / "source", label_map={"Nv": "bkl"}), seed=1, out=tmp_path / "out")


@pytest.mark.parametrize("name", ["melanoma", "", "macro"])
def test_labels_are_mapped_to_known_classes_alone(params: Params, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError, match="is no class"):
        config(params, tmp_path, label_map={"mel": name})


def test_no_lesion_or_patient_is_in_two_splits_and_every_class_in_all(ingested: Path) -> None:
    table = read_table(ingested / "images.parquet")
    assert table.groupby("lesion_id")["split"].nunique().max() == 1
    assert table.groupby("patient_id")["split"].nunique().max() == 1
    assert (pd.crosstab(table["label"], table["split"]) > 0).all(axis=None)
    assert (table.groupby("lesion_id")["image_id"].count() >= 2).all()


def test_copies_under_other_lesion_ids_stay_in_one_split(
    params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_ham10000(source)
    images = source / "HAM10000_images_part_1"
    original = Image.fromarray(load_sample_image("flower.jpg")).resize((192, 144))
    original.save(images / "ISIC_0000000.jpg")
    copies = [f"ISIC_{number:07d}" for number in (12, 24, 36, 48, 60, 72, 84, 96)]  # each of another lesion
    for number, name in enumerate(copies):
        turned = original.transpose(list(Image.Transpose)[number % 7])
        turned.resize((96, 72)).save(images / f"{name}.jpg", quality=90)
    caplog.set_level("INFO", "dermtune")
    ingest(config(params, source), seed=1, out=out)
    table = read_table(out / "images.parquet").set_index("image_id")
    assert len(set(table.loc[["ISIC_0000000", *copies], "group_id"])) == 1
    assert "pairs of copies are kept together, such as ISIC_0000000 and ISIC_0000012" in caplog.text


def test_metadata_that_tells_the_diagnosis_is_said(
    params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_ham10000(source, lesions=360)
    metadata = source / "HAM10000_metadata.csv"
    metadata.write_text(metadata.read_text().replace("mel,histo,50,male", "mel,histo,80,male"))
    ingest(config(params, source), seed=1, out=out)
    told = pd.read_csv(out / "metadata.csv").set_index("column")["auroc"]
    assert told["age"] == 1
    assert "warning: age alone tells mel (AUROC 1.000)" in caplog.text
    assert told["size"] < 0.7


def test_the_same_source_and_seed_give_the_same_bytes(params: Params, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_ham10000(source)
    outs = [tmp_path / "first", tmp_path / "second"]
    for out in outs:
        ingest(config(params, source), seed=1, out=out)
    names = sorted(path.name for path in outs[0].iterdir())
    assert names == [
        "contact_sheet.png",
        "croissant.json",
        "data_card.html",
        "images-000.tar",
        "images.parquet",
        "masks.npy",
        "metadata.csv",
        "prints.npy",
        "quarantine.parquet",
        "splits_by_class.csv",
        "summary.json",
    ]
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name


def test_outlines_of_the_lesion_are_kept_where_the_source_has_them(params: Params, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_ham10000(source)
    (source / "masks").mkdir()
    outline = np.zeros((36, 48), np.uint8)
    outline[9:27, 12:36] = 255
    Image.fromarray(outline).save(source / "masks/ISIC_0000003_segmentation.png")
    Image.fromarray(outline[:, :30]).save(source / "masks/ISIC_0000004_segmentation.png")  # of another view
    (source / "masks/ISIC_0000005_segmentation.png").write_bytes(b"no image")
    ingest(config(params, source), seed=1, out=out)
    table = read_table(out / "images.parquet")
    (row,) = np.flatnonzero(table["has_mask"])
    assert table["image_id"][row] == "ISIC_0000003"
    mask = unpack_mask(open_array(out / MASKS, rows=len(table))[row], 36, 48)
    assert (mask != (outline > 0)).mean() < 0.03
    assert json.loads((out / "summary.json").read_text())["masks"] == 1


def test_a_source_that_is_mostly_broken_is_refused(params: Params, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_ham10000(source)
    for path in sorted((source / "HAM10000_images_part_1").iterdir())[:20]:
        path.write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"20 of 120 files are unusable.*ISIC_0000000\.jpg"):
        ingest(config(params, source), seed=1, out=tmp_path / "out")


def test_a_class_with_too_few_lesions_is_refused_by_name(params: Params, tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_ham10000(source)
    metadata = source / "HAM10000_metadata.csv"
    metadata.write_text(
        metadata.read_text().replace("HAM_0000001,ISIC_0000002,nv", "HAM_0000001,ISIC_0000002,df")
    )
    metadata.write_text(
        metadata.read_text().replace("HAM_0000001,ISIC_0000003,nv", "HAM_0000001,ISIC_0000003,df")
    )
    with pytest.raises(DataError, match="class 'df' has 1 lesions"):
        ingest(config(params, source), seed=1, out=tmp_path / "out")


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(ValidationError, match="must sum to 1"):
        SplitConfig(train=0.7, val=0.2, test=0.2, assign="shares", stratify=[], official=True)


def write_listed(
    folder: Path, rows: list[str], header: str = "image_id,lesion_id,patient_id,label,age"
) -> None:
    """A table and an image a row, of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(rows))
    for row in rows:
        picture = Image.fromarray(rng.integers(0, 255, (36, 48, 3), dtype=np.uint8))
        exif = Image.Exif()
        exif[0x010F], exif[0x013B] = "Camera of Erika Mustermann", "Dr. Erika Mustermann"
        picture.save(folder / f"{row.split(',')[0]}.jpg", exif=exif, comment=b"Erika Mustermann")
    (folder / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def of_two_classes(count: int) -> list[str]:
    return [f"I{n},L{n},Erika-{n // 2},{('melanoma', 'nevus')[n // 2 % 2]},{40 + n}" for n in range(count)]


def test_who_a_patient_is_stays_outside(params: Params, tmp_path: Path) -> None:
    source, key = tmp_path / "source", tmp_path / "patients.key"
    write_listed(source, of_two_classes(40))
    outs = [tmp_path / name for name in ("first", "second", "third")]
    for out, used in zip(outs, (key, key, None), strict=True):
        ingest(config(params, source, source="listed"), seed=1, out=out, key=used)
    tables = [read_table(out / "images.parquet") for out in outs]
    assert tables[0]["patient_id"].equals(tables[1]["patient_id"])
    assert not tables[0]["patient_id"].isin(tables[2]["patient_id"]).any()
    assert tables[0]["patient_id"].nunique() == 20
    assert tables[0].groupby("patient_id")["split"].nunique().max() == 1
    for path in outs[0].iterdir():
        assert b"Erika" not in path.read_bytes(), path.name
    assert (source / "I0.jpg").read_bytes().count(b"Erika") >= 3


def test_what_is_odd_in_a_row_is_counted_and_set_aside(
    params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    rows = of_two_classes(40)
    rows[0] = rows[0].replace(",40", ",999")
    rows += ["i3,L90,P90,nevus,40", "I91,L2,P1,melanoma,40", "I92,L92,P92,wart,40", "../I93,L93,P93,nevus,40"]
    write_listed(source, rows[:-1])
    (source / "labels.csv").write_text((source / "labels.csv").read_text() + rows[-1] + "\n")
    (tmp_path / "I93.jpg").write_bytes((source / "I5.jpg").read_bytes())
    changes = {"source": "listed", "unmapped": "drop", "max_quarantine": 0.5}
    ingest(config(params, source, **changes), seed=1, out=out)
    table, aside = read_table(out / "images.parquet"), pd.read_parquet(out / "quarantine.parquet")
    reasons = dict(zip(aside["image_id"], aside["reason"], strict=True))
    assert reasons["i3"] == "its id differs from another's in case alone"
    assert reasons["I91"] == reasons["I2"] == "its lesion has several diagnoses: mel, nv"
    assert reasons["I92"] == "left out by params.yaml: its label 'wart' is none of the classes"
    assert len(reasons) == 5
    assert aside["thumbnail"].notna().sum() == 4
    assert pd.isna(table.set_index("image_id")["age"]["I0"])
    assert "1 ages outside 0 to 120 are taken as unknown" in caplog.text
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["read"], summary["kept"], summary["dropped"]) == (44, 39, 1)


def test_several_sources_are_one_table_and_their_copies_one_group(params: Params, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_ham10000(source / "ham")
    write_listed(source / "clinic", of_two_classes(40))
    copy = source / "ham/HAM10000_images_part_1/ISIC_0000000.jpg"
    (source / "clinic/I0.jpg").write_bytes(copy.read_bytes())
    changes = {"source": "several", "parts": {"ham10000": "ham", "listed": "clinic"}}
    ingest(config(params, source, **changes), seed=1, out=out)
    table = read_table(out / "images.parquet").set_index("image_id")
    assert table["source"].value_counts().to_dict() == {"ham10000": 120, "listed": 40}
    assert table["group_id"]["I0"] == table["group_id"]["ISIC_0000000"]
    assert set(table["license"].dropna()) == {"CC-BY-NC-4.0"}


def test_the_sources_own_split_counts_if_it_is_asked(params: Params, tmp_path: Path) -> None:
    source = tmp_path / "source"
    rows = [
        f"{row},{('train', 'train', 'valid', 'test')[n // 4 % 4]}" for n, row in enumerate(of_two_classes(96))
    ]
    write_listed(source, rows, "image_id,lesion_id,patient_id,label,age,split")
    ingest(config(params, source, source="listed"), seed=1, out=tmp_path / "own")
    table = read_table(tmp_path / "own/images.parquet")
    number = table["image_id"].str[1:].astype(int)
    assert table["split"].tolist() == [("train", "train", "val", "test")[n // 4 % 4] for n in number]


def test_pages_describe_what_was_ingested(ingested: Path) -> None:
    card = (ingested / "data_card.html").read_text()
    assert "<script" not in card
    described = json.loads((ingested / "croissant.json").read_text())
    assert described["@type"] == "sc:Dataset"
    balance = pd.read_csv(ingested / "splits_by_class.csv")
    assert balance["images"].sum() == len(read_table(ingested / "images.parquet"))


def test_a_copy_stands_in_for_what_cannot_be_used_and_joins_what_is_listed_twice(
    params: Params, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    rows = of_two_classes(40)
    write_listed(source / "a", [*rows, "J0,L0,P0,melanoma,40", "J1,L5,Erika-2,melanoma,40"])
    write_listed(source / "b", ["J0,X0,P0,melanoma,40", "I8,X1,P1,melanoma,40", "J2,X1,P1,melanoma,40"])
    (source / "a/J0.jpg").write_bytes(b"no image")
    changes = {"source": "several", "parts": {"listed": "a", "class_folders": "b"}, "max_quarantine": 0.9}
    (source / "b/labels.csv").unlink()
    (source / "b/melanoma").mkdir()
    for path in (source / "b").glob("*.jpg"):
        path.rename(source / "b/melanoma" / path.name)
    ingest(config(params, source, **changes), seed=1, out=out)
    table = read_table(out / "images.parquet").set_index("image_id")
    aside = pd.read_parquet(out / "quarantine.parquet").set_index("path")["reason"]
    assert table["source"]["J0"] == "class_folders"
    assert aside["melanoma/I8.jpg"] == "its id occurs twice"
    assert len(table) + len(aside) == 45


def test_a_run_that_fails_leaves_no_table_over_other_images(params: Params, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_listed(source, of_two_classes(40))
    ingest(config(params, source, source="listed"), seed=1, out=out)
    for number in range(4, 40):
        (source / f"I{number}.jpg").write_bytes(b"no image")
    with pytest.raises(SourceError, match="files are unusable"):
        ingest(config(params, source, source="listed"), seed=1, out=out)
    assert not (out / "images.parquet").exists()


def write_table_and_zip(folder: Path) -> None:
    """A table and 40 images, of which every other lies in a .zip, and one is too damaged to be used."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = ["image_id,lesion_id,label,patient_id"]
    with zipfile.ZipFile(folder / "part.zip", "w") as packed:
        for number in range(40):
            path = folder / f"I{number:02d}.jpg"
            Image.fromarray(rng.integers(0, 255, (36, 48, 3), dtype=np.uint8)).save(path)
            rows.append(f"{path.stem},L{number},{('mel', 'nv')[number % 2]},P{number}")
            if number % 2:
                packed.write(path, f"inner/{path.name}")
                path.unlink()
    (folder / "I02.jpg").write_bytes(b"no image")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def test_a_bucket_is_a_source_as_a_folder_is_and_what_it_held_is_not_looked_at_again(
    params: Params, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, url = tmp_path / "source", f"{s3}/clinic/images"
    write_table_and_zip(source)
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.put(f"{source}/", f"{url}/", recursive=True)
    notes, key = tmp_path / "notes.json", tmp_path / "key"
    here, there = tmp_path / "here", tmp_path / "there"
    changes: dict[str, object] = {"source": "listed", "max_quarantine": 0.1}

    ingest(config(params, source, **changes), seed=1, out=here, key=key)
    from_bucket = config(params, source, **changes, path=url)
    ingest(from_bucket, seed=1, out=there, key=key, notes=notes)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in here.iterdir()
    }
    assert len(read_table(there / "images.parquet")) == 39

    class EnoughError(Exception):
        pass

    def spy(images: list[SourceImage], _: ComputeConfig) -> None:
        raise EnoughError([image.image_id for image in images])

    monkeypatch.setattr(stage, "check_images", spy)
    store.copy(f"{url}/I04.jpg", f"{url}/I06.jpg")
    with pytest.raises(EnoughError) as looked_at:  # what could not be used, and what changed
        ingest(from_bucket, seed=1, out=there, key=key, notes=notes)
    assert looked_at.value.args[0] == ["I02", "I06"]


def test_a_store_that_fails_ends_the_run_and_sets_nothing_aside(
    params: Params, s3: str, tmp_path: Path
) -> None:
    source, url = tmp_path / "source", f"{s3}/images"
    write_table_and_zip(source)
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    store.put(f"{source}/", f"{url}/", recursive=True)
    listed = list_images("listed", Place(url), parts={}, columns={}, lesions=40, seed=1)
    store.rm_file(f"{url}/I04.jpg")
    with pytest.raises(SourceError, match="a file that was listed is gone or was changed") as told:
        check_image(listed[4])
    assert str(pickle.loads(pickle.dumps(told.value))) == str(told.value)  # noqa: S301 - so it leaves a worker
    assert str(told.value).startswith(f"{url}: cannot be used: ")
    assert "I04" not in str(told.value)
    for nowhere in (f"{s3}/nowhere", f"{s3}/images/labels.csv"):
        with pytest.raises(SourceError, match=f"{nowhere}: no such folder"):
            ingest(config(params, source, path=nowhere), seed=1, out=tmp_path / "out")
    with pytest.raises(SourceError, match="bucket does not exist"):
        ingest(config(params, source, path=f"{s3}-none/x"), seed=1, out=tmp_path / "out")
