from pathlib import Path

import pytest

from dermtune import groups
from dermtune.appearance import MASKS
from dermtune.groups import read_groups
from dermtune.inference import measure_appearance
from dermtune.shards import PackedImages, open_array, places
from dermtune.subgroups import AGES, groups_of
from dermtune.table import read_table


def test_what_the_table_says_is_read_without_a_look_at_the_images(
    ingested: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "PackedImages", pytest.fail)
    table = read_table(ingested / "images.parquet", split="train")
    found = read_groups(ingested, table, ["sex", "age"])
    assert list(found) == ["sex", "age"]
    assert found["sex"].tolist() == table["sex"].fillna("not given").tolist()
    assert set(found["age"]) <= {*AGES, "not given"}


def test_skin_tone_is_seen_in_the_images_where_the_source_does_not_give_it(ingested: Path) -> None:
    """As evaluate sees it."""
    everything = read_table(ingested / "images.parquet")
    masks = open_array(ingested / MASKS, rows=len(everything))[(everything["split"] == "val").to_numpy(bool)]
    table = read_table(ingested / "images.parquet", split="val")
    assert table["has_mask"].all()
    looks = measure_appearance(
        PackedImages(ingested), places(table), masks=[*masks], description="appearance"
    )
    expected = groups_of(table.assign(lesion_share=looks["lesion_share"], ita=looks["ita"]))
    found = read_groups(ingested, table, ["skin_tone", "lesion_size"])
    assert found["skin_tone"].tolist() == expected["skin_tone"].tolist()
    assert found["lesion_size"].tolist() == expected["lesion_size"].tolist()
    assert found["skin_tone"].nunique() > 1
    given = table.assign(skin_tone="IV")
    assert set(read_groups(ingested, given, ["skin_tone"])["skin_tone"]) == {"type IV"}
