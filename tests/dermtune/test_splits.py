import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermtune.errors import DataError
from dermtune.splits import (
    SplitConfig,
    assign_folds,
    assign_splits,
    join_groups,
    join_pairs,
    keep_splits,
    read_splits,
    split_groups,
)
from dermtune.table import SPLITS

SHARES = (0.70, 0.15, 0.15)
Ids = list[int | None]


def test_lesions_and_patients_join_transitively() -> None:
    #  a, b: one lesion; b, c: one patient; d: nothing in common with them; e: the patient of d
    groups = join_groups(["l1", "l1", "l2", "l3", "l4"], [None, "p1", "p1", "p2", "p2"])
    assert list(groups) == [0, 0, 0, 1, 1]


def test_a_lesion_and_a_patient_of_the_same_name_do_not_join() -> None:
    assert list(join_groups(["x", "y"], ["y", "x"])) == [0, 1]


@given(st.lists(st.tuples(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)), min_size=1))
def test_images_share_a_group_exactly_if_a_chain_of_shared_keys_links_them(keys: list[Ids]) -> None:
    columns = list(zip(*keys, strict=True))
    groups = join_groups(*columns)
    linked = np.array(
        [
            [
                i == j or any(a is not None and a == b for a, b in zip(keys[i], keys[j], strict=True))
                for j in range(len(keys))
            ]
            for i in range(len(keys))
        ]
    )
    for _ in keys:
        linked = linked @ linked
    assert np.array_equal(groups[:, None] == groups[None, :], linked)


@given(st.lists(st.integers(1, 6), min_size=9, max_size=80), st.integers(0, 2**32 - 1))
def test_a_split_keeps_groups_whole_and_gives_every_class_to_every_side(sizes: list[int], seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = [("nv", "mel", "bcc")[group % 3] for group in groups]
    split = split_groups(groups, labels, shares=SHARES, rng=np.random.default_rng(seed))
    assert set(split) == set(SPLITS)
    for group in range(len(sizes)):
        assert len(set(split[groups == group])) == 1
    for name in set(labels):
        assert set(split[np.array(labels) == name]) == set(SPLITS)


@pytest.mark.parametrize("count", [20, 100, 1000])
def test_each_class_is_split_by_the_shares(count: int) -> None:
    groups = np.arange(2 * count)
    labels = ["nv", "mel"] * count
    split = split_groups(groups, labels, shares=SHARES, rng=np.random.default_rng(1))
    for name in ("nv", "mel"):
        got = [(split[np.array(labels) == name] == side).mean() for side in SPLITS]
        assert np.allclose(got, SHARES, atol=2.5 / count)


def test_a_group_of_two_classes_counts_as_the_rarer() -> None:
    groups = np.array([*range(30), 30, 30, 31, 31, 32, 32])
    labels = ["nv"] * 30 + ["nv", "mel"] * 3
    split = split_groups(groups, labels, shares=SHARES, rng=np.random.default_rng(1))
    assert set(split[np.array(labels) == "mel"]) == set(SPLITS)


def test_pairs_are_joined_transitively() -> None:
    groups = join_pairs(6, [(0, 3), (3, 5), (1, 2)])
    assert len(set(groups)) == 3
    assert groups[0] == groups[3] == groups[5]
    assert groups[1] == groups[2]
    assert len(set(join_pairs(3, []))) == 3


def test_the_seed_alone_decides_the_split() -> None:
    groups, labels = np.arange(60), ["nv", "mel", "bcc"] * 20
    first, again, other = (
        split_groups(groups, labels, shares=SHARES, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_of_two_lesions_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="class 'df' has 2 lesions"):
        split_groups(np.arange(8), ["nv"] * 6 + ["df"] * 2, shares=SHARES, rng=np.random.default_rng(1))


def test_folds_keep_groups_together_and_classes_even() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(120, size=400)
    labels = np.where(groups % 4 == 0, "mel", "nv")
    fold = assign_folds(list(labels), [f"G{group}" for group in groups], folds=4, seed=1)
    assert set(fold) == {0, 1, 2, 3}
    assert pd.Series(fold).groupby(groups).nunique().max() == 1
    shares = [(labels[fold == number] == "mel").mean() for number in range(4)]
    assert max(shares) - min(shares) < 0.1
    assert np.array_equal(fold, assign_folds(list(labels), [f"G{g}" for g in groups], folds=4, seed=1))
    assert not np.array_equal(fold, assign_folds(list(labels), [f"G{g}" for g in groups], folds=4, seed=2))


def test_a_class_that_is_too_rare_for_all_folds_is_in_some() -> None:
    fold = assign_folds(["nv"] * 9 + ["df"] * 2, list("abcdefghijk"), folds=3, seed=1)
    assert len(set(fold[-2:])) <= 2
    assert set(fold) == {0, 1, 2}


@given(
    st.lists(st.integers(1, 4), min_size=12, max_size=60),
    st.integers(0, 30),
    st.integers(0, 2**32 - 1),
)
def test_images_that_come_in_move_no_lesion_and_keep_the_shares(
    sizes: list[int], more: int, seed: int
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = [("nv", "mel", "bcc")[group % 3] for group in groups]
    before = split_groups(groups, labels, shares=SHARES, rng=np.random.default_rng(seed))
    added = np.arange(more) + groups[-3]  # more images of old lesions as well
    all_groups = np.concatenate([groups, added])
    all_labels = [*labels, *(("nv", "mel", "bcc")[group % 3] for group in added)]
    after = split_groups(
        all_groups,
        all_labels,
        shares=SHARES,
        rng=np.random.default_rng(seed + 1),
        kept=[*before, *[None] * more],
    )
    assert np.array_equal(after[: len(groups)], before)
    for group in set(all_groups):
        assert len(set(after[all_groups == group])) == 1
    for name in ("nv", "mel", "bcc"):
        there = np.array([group for group in set(all_groups) if ("nv", "mel", "bcc")[group % 3] == name])
        split = np.array([after[all_groups == group][0] for group in there])
        for side, share in zip(SPLITS, SHARES, strict=True):
            assert abs((split == side).sum() - share * len(there)) < 2.5


def test_what_was_trained_on_is_never_tested_on() -> None:
    groups = np.array([*range(30), 30, 30, 30, 31, 31])
    kept = [None] * 30 + ["test", "train", None, "test", "val"]
    split = split_groups(groups, ["nv"] * 35, shares=SHARES, rng=np.random.default_rng(1), kept=kept)
    assert list(split[30:]) == ["train"] * 3 + ["val"] * 2


def test_splits_that_are_kept_come_back_and_grow(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    first = pd.DataFrame({"sha256": ["a" * 64, "b" * 64], "split": ["train", "test"]})
    keep_splits(first, path)
    keep_splits(pd.DataFrame({"sha256": ["c" * 64], "split": ["val"]}), path)
    assert read_splits(path) == {"a" * 64: "train", "b" * 64: "test", "c" * 64: "val"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: expected sha256,split"),
        ("sha,split\n", "line 1: expected sha256,split"),
        (f"sha256,split\n{'a' * 64},train\n{'b' * 64},tset\n", "line 3: expected a SHA-256 and one of"),
        (f"sha256,split\n{'a' * 63},train\n", "line 2: expected"),
        ("sha256,split\n\xff\n", "not a readable CSV file"),
    ],
)
def test_a_damaged_file_of_splits_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_splits(path)


def images(sizes: list[int], *, given: list[str | None] | None = None) -> pd.DataFrame:
    """Lesions of so many images each, of three classes, on two sites."""
    lesion = np.repeat(np.arange(len(sizes)), sizes)
    return pd.DataFrame(
        {
            "source": "x",
            "lesion_id": [f"L{number}" for number in lesion],
            "patient_id": None,
            "sha256": [f"{number:064x}" for number in range(len(lesion))],
            "label": [("nv", "mel", "bcc")[number % 3] for number in lesion],
            "site": np.where(lesion // 3 % 2, "back", "face"),
            "age": lesion % 80,
            "given": [None] * len(lesion) if given is None else [given[number] for number in lesion],
        }
    )


def choices(**changes: object) -> SplitConfig:
    known = {"train": 0.7, "val": 0.15, "test": 0.15, "assign": "shares", "stratify": [], "official": True}
    return SplitConfig.model_validate(known | changes)


def assigned(table: pd.DataFrame, seed: int = 1, **changes: object) -> pd.DataFrame:
    return assign_splits(table, copies=range(len(table)), config=choices(**changes), seed=seed)


@settings(deadline=None, max_examples=20)
@given(st.integers(300, 400), st.integers(0, 60), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_by_hash_no_lesion_ever_moves_without_any_file(
    lesions: int, more: int, views: int, seed: int
) -> None:
    before = assigned(images([2] * lesions), seed, assign="hash")
    after = assigned(
        images([2 + views] * lesions + [1] * more).sample(frac=1, random_state=1), seed, assign="hash"
    )
    sides = [table.groupby("lesion_id")["split"].unique().map(list) for table in (before, after)]
    assert sides[1].map(len).max() == 1
    assert sides[0].equals(sides[1][sides[0].index])


def test_by_hash_the_shares_are_about_those_asked_for() -> None:
    shares = assigned(images([1] * 3000), assign="hash")["split"].value_counts(normalize=True)
    assert [abs(shares[side] - share) < 0.02 for side, share in zip(SPLITS, SHARES, strict=True)] == [
        True
    ] * 3


def test_a_split_is_spread_evenly_where_asked() -> None:
    table = assigned(images([1] * 240), stratify=["site", "age"])
    by_site = pd.crosstab([table["label"], table["site"]], table["split"])
    assert (by_site.max(axis=0) - by_site.min(axis=0)).max() <= 2
    by_age = pd.crosstab(table["age"] // 10, table["split"], normalize="index")
    assert by_age["train"].between(0.5, 0.9).all()


@pytest.mark.parametrize("assign", ["shares", "hash"])
def test_the_sources_own_split_is_kept(assign: str) -> None:
    own = ["test" if number % 5 == 0 else "train" for number in range(200)]
    table = assigned(images([2] * 200, given=own), assign=assign)
    lesion = table["lesion_id"].str[1:].astype(int)
    assert set(table["split"][lesion % 5 == 0]) == {"test"}
    assert set(table["split"][lesion % 5 != 0]) == {"train", "val"}
    three = [("train", "val", "test")[number // 3 % 3] for number in range(200)]
    table = assigned(images([1] * 200, given=three), assign=assign)
    assert table["split"].tolist() == three
    ignored = assigned(images([1] * 200, given=three), assign=assign, official=False)
    assert ignored["split"].equals(assigned(images([1] * 200), assign=assign)["split"])


def test_images_beside_an_official_test_split_come_to_the_others() -> None:
    own = ["test" if number < 12 else None for number in range(120)]
    table = assigned(images([1] * 120, given=own))
    assert (table["split"] == "test").sum() == 12
    assert (table["split"] == "val").sum() > 10


def test_what_the_listing_links_stays_together() -> None:
    table = images([1] * 60).assign(linked=[0, 0, *range(2, 60)])
    split = assign_splits(table, copies=range(60), config=choices(), seed=1)
    assert split["group_id"][0] == split["group_id"][1]
    assert "linked" not in split
