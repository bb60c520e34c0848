"""The card counts everything, shows what a person must look at, and names no patient."""

import re
from html import unescape

import pandas as pd
import pytest

from dermtune.data_card import (
    CopyShown,
    balance,
    biases,
    copies_to_show,
    draw_figures,
    limitations,
    render_data_card,
)
from dermtune.duplicates import Pair
from dermtune.table import COLUMNS, SPLITS, check_table

WANTED = {"train": 0.7, "val": 0.15, "test": 0.15}


def table(count: int = 12, **changes: object) -> pd.DataFrame:
    """Two images a lesion, a patient each; melanoma and nevus in turn; a lesion a split in turn."""
    rows = [
        dict.fromkeys(COLUMNS)
        | {
            "image_id": f"I{row}",
            "lesion_id": f"lesion-{row // 2}",
            "patient_id": f"patient-{row // 2}",
            "group_id": f"group-{row // 2}",
            "label": "mel" if row // 2 % 2 else "nv",
            "split": SPLITS[row // 2 % 3],
            "age": 20.0 + 5 * row,
            "sex": "female" if row % 3 else None,
            "site": "back",
            "dx_type": "histo" if row % 2 else "follow_up",
            "license": "CC-0",
            "attribution": "Clinic A",
            "has_mask": False,
            "has_text": False,
            "red": 180.0 + row,
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
        for row in range(count)
    ]
    return check_table(pd.DataFrame(rows).assign(**changes))


def quarantine(*rows: tuple[str, str, bytes | None]) -> pd.DataFrame:
    found = pd.DataFrame(rows, columns=["image_id", "reason", "thumbnail"])
    return found.astype({"image_id": "string", "reason": "string"})


def summary(images: pd.DataFrame, aside: int = 0, **changes: int) -> dict[str, object]:
    counts = {"read": len(images) + aside, "kept": len(images), "quarantined": aside, "dropped": 0}
    return counts | {"copies": 0, "masks": 0, "implausible_ages": 0, "images": {}} | changes


def render(
    images: pd.DataFrame,
    aside: pd.DataFrame | None = None,
    counts: dict[str, object] | None = None,
    **options: object,
) -> str:
    aside = quarantine() if aside is None else aside
    defaults = {"pngs": {}, "pairs": [], "wanted": WANTED}
    return render_data_card(images, aside, counts or summary(images, len(aside)), **defaults | options)


def words(page: str) -> str:
    """What a person reads, in plain letters."""
    text = unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL))
    plain = text.replace("\N{MULTIPLICATION SIGN}", "x").replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return " ".join(plain.split())


def test_what_was_read_is_what_was_kept_and_what_was_set_aside() -> None:
    aside = quarantine(("B0", "no label", None), ("B1", "blank", b"jpeg"), ("B2", "no label", None))
    counts = summary(table(), 3, dropped=1, masks=5)
    shown = words(render(table(), aside, counts=counts))
    assert "Images read 15 = kept 12 80.0% + set aside 3 20.0%; 1 by choice" in shown
    assert "12 images of 6 lesions, 6 patients, in 2 classes, from 1 source: made_up." in shown
    assert "do not add up" not in shown


def test_an_image_that_was_lost_is_told() -> None:
    shown = words(render(table(), counts=summary(table(), read=14)))
    assert "The counts do not add up: of 14 images read, 2 were neither kept nor set aside" in shown


def test_the_page_needs_nothing_else_and_shows_no_one() -> None:
    images = table(attribution="<script>alert(1)</script>", has_text=True)
    pngs = dict.fromkeys(("class_balance", "colours", "ages", "unknown"), b"png")
    shown = render(images, quarantine(("B0", "<b>bad", b"jpeg")), pngs=pngs, flagged={"I0": b"jpeg"})
    assert shown.count('<img src="data:image/png;base64,') == 3
    assert shown.count('<img src="data:image/jpeg;base64,') == 2
    assert not re.search(r"<script|<b>bad|(?:src|href)=\"(?!data:|#)", shown)
    assert not re.search(r"patient-\d|lesion-\d|group-\d", shown)


def test_each_class_is_counted_in_images_lesions_and_patients_by_split() -> None:
    images = table()
    images.loc[images["lesion_id"] == "lesion-0", "patient_id"] = pd.NA
    counts = balance(images)
    assert list(counts.columns) == ["label", "split", "images", "lesions", "patients"]
    assert [*zip(counts["label"], counts["split"], strict=True)] == [
        (label, split) for label in ("mel", "nv") for split in SPLITS
    ]
    assert counts["images"].sum() == len(images)
    assert counts["lesions"].tolist() == [1] * 6
    assert counts["patients"].isna().tolist() == [False, False, False, True, False, False]
    assert "nv,train,2,1,\n" in counts.to_csv(index=False)


def test_a_class_that_a_split_lacks_has_none_there() -> None:
    images = table()
    images = images[(images["label"] != "mel") | (images["split"] != "val")]
    counts = balance(images).set_index(["label", "split"])
    assert counts.loc[("mel", "val")].tolist() == [0, 0, 0]


def test_shares_stand_beside_those_that_were_wanted() -> None:
    shown = render(table())
    assert "wanted 70.0%" in shown
    assert shown.count('class="number off">33.3%') == 6  # of two classes, in three splits
    own = render(table(), wanted=None)
    assert "the source's own" in words(own)
    assert 'class="number off"' not in own


def test_licences_and_whom_to_name_are_counted() -> None:
    licenses = ["CC-BY"] * 7 + [None] * 5
    names = [f"Clinic {number}" for number in range(12)]
    shown = words(render(table(license=licenses, attribution=names)))
    assert "CC-BY 7 4 lesions, 4 patients not said 5" in shown
    assert "5 images without a licence" in shown
    assert "Clinic 3 (1 image)" in shown
    assert "The source names nobody." in words(render(table(attribution=None)))


def test_a_long_list_of_names_ends_in_a_count() -> None:
    shown = words(render(table(402, attribution=[f"Clinic {row // 2:03}" for row in range(402)])))
    assert "Clinic 199" in shown
    assert "Clinic 200" not in shown
    assert "And 1 more, for 2 images" in shown


def test_reasons_come_most_frequent_first_with_up_to_six_thumbnails() -> None:
    rows = [(f"B{row}", "blank", b"jpeg") for row in range(8)] + [("C0", "no such file", None)]
    shown = render(table(), quarantine(rows[-1], *rows[:-1]))
    assert words(shown).index("8 images: blank") < words(shown).index("1 image: no such file")
    assert [f"set aside: B{row}" in shown for row in range(8)] == [True] * 6 + [False] * 2
    assert "Nothing was set aside." in words(render(table()))


def test_a_long_list_of_reasons_ends_in_a_count() -> None:
    rows = [(f"B{row}", f"its label 'word {row:02}' is no class", None) for row in range(52)]
    shown = words(render(table(), quarantine(*rows)))
    assert "word 49" in shown
    assert "And 2 more reasons, for 2 images." in shown


def test_copies_whose_labels_differ_come_first_and_only_some_are_looked_at() -> None:
    images, looked = table(120), []

    def look(row: int) -> bytes:
        looked.append(row)
        return b"jpeg"

    same_lesion = [Pair(row, row + 1, 0.995) for row in range(0, 100, 2)]
    other_lesion, contradiction = Pair(0, 4, 0.991), Pair(0, 2, 0.992)
    found = copies_to_show([*same_lesion, other_lesion, contradiction], images, look)
    assert len(found) == 52
    assert found[0] == CopyShown(
        first="I0",
        second="I2",
        correlation=0.992,
        other_lesion=True,
        labels=("Melanocytic nevus", "Melanoma"),
        jpegs=(b"jpeg", b"jpeg"),
    )
    assert (found[1].second, found[1].other_lesion, found[1].is_contradiction) == ("I4", True, False)
    assert [pair.jpegs is None for pair in found] == [False] * 40 + [True] * 12
    assert len(looked) == 80

    page = render(images, pairs=found)
    shown = words(page)
    assert "52 pairs of files show one photograph" in shown
    assert "The source calls 2 of them different lesions." in shown
    assert "1 pair bears two labels; it comes first." in shown
    assert (
        "Labelled Melanocytic nevus and Melanoma: one must be wrong. The source calls them different" in shown
    )
    assert "Both labelled Melanocytic nevus. The source calls them one lesion." in shown
    assert "The first 40 are shown." in shown
    assert page.count('alt="copy: ') == 80


def test_one_pair_of_copies_reads_well_and_so_does_none() -> None:
    found = copies_to_show([Pair(0, 1, 0.999)], table(), lambda _: b"jpeg")
    shown = words(render(table(), pairs=found))
    assert "1 pair of files shows one photograph" in shown
    assert "two labels" not in shown
    assert "No image is a copy of another" in words(render(table()))


def test_letters_in_pictures_are_shown_twelve_at_most() -> None:
    flagged = {f"I{row}": b"jpeg" for row in range(14)}
    page = render(table(14, has_text=True), flagged=flagged)
    assert "14 images with letters in the picture" in words(page)
    assert page.count('alt="with letters: ') == 12
    assert "No image was found to hold letters" in words(render(table()))


def test_sizes_are_counted_and_the_extremes_named() -> None:
    widths = [600] * 4 + [*range(100, 1200, 100)]
    shown = words(render(table(15, width=widths, height=100)))
    assert "600 x 100 5 1100 x 100 1" in shown
    assert "1 other size 1" in shown
    assert "Smallest: 100 x 100. Largest: 1100 x 100." in shown


def test_people_are_counted_by_group_and_what_is_not_given_as_well() -> None:
    images = table(skin_tone=["II"] * 6 + ["VI"] + [None] * 5)
    shown = words(render(images, counts=summary(images, implausible_ages=3)))
    assert "under 30 2 0 0 30 to 44" in shown  # in order of age
    assert "female 2 2 4 not given 2 2 0" in shown
    assert "type V 0 0 0 type VI 1 0 0 not given" in shown  # none of a type is worth saying
    assert "3 images had an age that no person has" in shown
    assert "type V" not in words(render(table()))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "All images come from one source"),
        ({}, "Histology confirmed the diagnosis of 6 of 12 images (50%); of 0 the source"),
        ({"patient_id": None}, "The patients of 12 images are not known"),
        ({"license": None}, "Of 12 images it is not said under which licence"),
        ({"source": "synthetic"}, "Synthetic images were drawn by a program"),
        ({"skin_tone": "VI"}, "skin tone of 12 of 12 images; 12 of them are of dark skin"),
        ({}, "The source gives no skin tones."),
    ],
)
def test_the_limits_are_those_of_this_data(changes: dict[str, object], told: str) -> None:
    images = table(**changes)
    assert any(told in one for one in limitations(images) + biases(images))
    assert told in words(render(images))


def test_no_limit_is_told_that_is_none() -> None:
    shown = " ".join(limitations(table(dx_type="histo", source=["a", "b"] * 6)))
    assert "come from 2 sources" in shown
    assert not re.search("Histology|patients of|licence|Synthetic", shown)


def test_the_figures_are_those_that_the_page_shows() -> None:
    assert list(draw_figures(table(), wanted=WANTED)) == ["class_balance", "colours", "ages"]
