"""What is in the data, for people: one HTML page that needs nothing else, with what to look at by eye.

The page shows image ids and pictures; patients are counted, never named.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dermtune.data_figures import ages, class_balance, colours
from dermtune.duplicates import Pair
from dermtune.labels import lesion_class
from dermtune.page import render_page
from dermtune.subgroups import AGES, ATTRIBUTES, NOT_GIVEN, groups_of
from dermtune.table import SPLITS

SHOWN_FLAGGED: Final = 12
"""Images with letters burned in of which the page shows a thumbnail."""
_SHOWN_PAIRS, _SHOWN_OF_REASON, _SHOWN_REASONS, _SHOWN_CREDITS, _SHOWN_SIZES = 40, 6, 50, 200, 10
_NOT_SAID: Final = "not said"
_SYNTHETIC: Final = "synthetic"
_HISTOLOGY: Final = "histo"
_TONES: Final = tuple(f"type {number}" for number in ("I", "II", "III", "IV", "V", "VI"))  # Fitzpatrick's
_DARK: Final = ("V", "VI")
_OFF: Final = 0.05  # share of a class's lesions by which a split may miss what was wanted, unremarked


@dataclass(frozen=True)
class CopyShown:
    """Two files that show one photograph."""

    first: str
    """Image id."""
    second: str
    correlation: float
    """Of their prints, in the flip or turn in which they agree most."""
    other_lesion: bool
    """Does the source call them different lesions?"""
    labels: tuple[str, str]
    """Titles of their classes."""
    jpegs: tuple[bytes, bytes] | None
    """Thumbnails; None: there are too many pairs to show this one."""

    @property
    def is_contradiction(self) -> bool:
        """Do their labels differ?"""
        return self.labels[0] != self.labels[1]


def copies_to_show(
    pairs: Sequence[Pair], table: pd.DataFrame, look: Callable[[int], bytes]
) -> list[CopyShown]:
    """All pairs of copies: first those whose labels differ, then those of different lesions, then the rest.

    Args:
        pairs: rows of `table`, as `duplicates.find_duplicates` gives them.
        table: the image table.
        look: from a row to its thumbnail, a JPEG; asked for the first 40 pairs alone.
    """
    labels, lesions = table["label"].tolist(), table["lesion_id"].tolist()
    ids = table["image_id"].tolist()

    def rank(pair: Pair) -> tuple[bool, bool, float]:
        a, b = pair.first, pair.second
        return labels[a] == labels[b], lesions[a] == lesions[b], -pair.correlation

    return [
        CopyShown(
            first=str(ids[pair.first]),
            second=str(ids[pair.second]),
            correlation=pair.correlation,
            other_lesion=lesions[pair.first] != lesions[pair.second],
            labels=(_title(labels[pair.first]), _title(labels[pair.second])),
            jpegs=(look(pair.first), look(pair.second)) if place < _SHOWN_PAIRS else None,
        )
        for place, pair in enumerate(sorted(pairs, key=rank))
    ]


def balance(table: pd.DataFrame) -> pd.DataFrame:
    """Images, lesions and patients of each class in each split.

    Args:
        table: the image table.

    Returns:
        `label, split, images, lesions, patients`, a row for each class and split, in that order; patients is
        empty where the source names none of the patients there.
    """
    by = table.groupby(["label", "split"])
    found = pd.DataFrame(
        {
            "images": by.size(),
            "lesions": by["lesion_id"].nunique(),
            "patients": by["patient_id"].nunique(),
        }
    )
    every = pd.MultiIndex.from_product([sorted(table["label"].unique()), SPLITS], names=["label", "split"])
    found = found.reindex(every, fill_value=0).astype("Int64")
    found["patients"] = found["patients"].mask((found["patients"] == 0) & (found["images"] > 0))
    return found.reset_index()


def draw_figures(table: pd.DataFrame, *, wanted: Mapping[str, float] | None = None) -> dict[str, Figure]:
    """The page's figures, by name.

    Args:
        table: the image table.
        wanted: as `render_data_card` takes it.
    """
    return {
        "class_balance": class_balance(balance(table), wanted=wanted),
        "colours": colours(table),
        "ages": ages(table),
    }


def limitations(table: pd.DataFrame) -> list[str]:
    """What cannot be told from these images, in sentences.

    Args:
        table: the image table.
    """
    found = []
    sources, images = table["source"].nunique(), len(table)
    if (table["source"] == _SYNTHETIC).any():
        found.append("Synthetic images were drawn by a program; they say nothing about any patient.")
    found.append(
        f"All images come from {'one source' if sources == 1 else f'{sources} sources'}, and so does the test"
        " split: how well a model does on other clinics' images cannot be told."
    )
    histology = int((table["dx_type"] == _HISTOLOGY).sum())
    if histology < images:
        unsaid = int(table["dx_type"].isna().sum())
        found.append(
            f"Histology confirmed the diagnosis of {histology:,} of {images:,} images"
            f" ({histology / images:.0%}); of {unsaid:,} the source does not say how it was made. Labels"
            " without histology are wrong more often."
        )
    if unnamed := int(table["patient_id"].isna().sum()):
        found.append(
            f"The patients of {unnamed:,} images are not known: other lesions of one patient may be in"
            " another split."
        )
    if unlicensed := int(table["license"].isna().sum()):
        found.append(f"Of {unlicensed:,} images it is not said under which licence they may be used.")
    found.append(
        "Copies are told by small grey pictures: a photograph cropped to less than 80% of a side, and two"
        " photographs of one lesion that goes by two names, are not found."
    )
    return found


def biases(table: pd.DataFrame) -> list[str]:
    """In what these images differ from those of a clinic, in sentences.

    Args:
        table: the image table.
    """
    tones = table["skin_tone"].dropna()
    dark = int(tones.isin(_DARK).sum())
    tone = (
        f"The source gives the skin tone of {len(tones):,} of {len(table):,} images; {dark:,} of them are of"
        " dark skin (Fitzpatrick's types V and VI)."
        if len(tones)
        else "The source gives no skin tones. Public dermoscopic images are mostly of light skin."
    )
    return [
        f"{tone} A model may do worse on skin that it has seen little of.",
        "Archives collect what was excised or is rare: the classes are not as frequent here as in a clinic.",
        "Cameras and clinics can go together with a diagnosis; a model may learn them in its place.",
    ]


def render_data_card(
    table: pd.DataFrame,
    quarantined: pd.DataFrame,
    summary: Mapping[str, Any],
    *,
    pngs: Mapping[str, bytes],
    pairs: Sequence[CopyShown],
    wanted: Mapping[str, float] | None = None,
    flagged: Mapping[str, bytes] | None = None,
) -> str:
    """Write the data card as one self-contained HTML page: no script, nothing fetched.

    Args:
        table: the image table, as `table.check_table` gives it.
        quarantined: what was set aside: `image_id`, `reason` and `thumbnail` (a JPEG, or None).
        summary: `read, kept, quarantined, dropped, copies, masks, implausible_ages`, all counts; dropped are
            those of the quarantined that params.yaml leaves out.
        pngs: what `draw_figures` gives, as PNG; those that the page does not know are left out.
        pairs: as `copies_to_show` gives them.
        wanted: share of the lesions that each split is to have; None: the source has splits of its own.
        flagged: thumbnails (JPEG) of images with letters burned in, by image id.
    """
    by_class = _by_class(table)
    values = {
        "summary": summary,
        "lost": summary["read"] - summary["kept"] - summary["quarantined"],
        "table": _counts(table),
        "splits": SPLITS,
        "classes": by_class,
        "of_split": {split: _counts(table[table["split"] == split]) for split in SPLITS},
        "wanted": wanted,
        "off": _OFF,
        "sources": _by(table, table["source"].fillna(_NOT_SAID)),
        "licenses": _by(table, table["license"].fillna(_NOT_SAID)),
        "not_said": _NOT_SAID,
        "credits": _credits(table),
        "shown_credits": _SHOWN_CREDITS,
        "reasons": _reasons(quarantined),
        "shown_reasons": _SHOWN_REASONS,
        "pairs": [pair for pair in pairs if pair.jpegs],
        "found_pairs": len(pairs),
        "contradictions": sum(pair.is_contradiction for pair in pairs),
        "other_lesions": sum(pair.other_lesion for pair in pairs),
        "sizes": _sizes(table),
        "people": _people(table),
        "attributes": ATTRIBUTES,
        "with_text": int(table["has_text"].sum()),
        "flagged": dict(list((flagged or {}).items())[:SHOWN_FLAGGED]),
        "synthetic": bool((table["source"] == _SYNTHETIC).any()),
        "limitations": limitations(table),
        "biases": biases(table),
        "pngs": pngs,
    }
    return render_page("data_card.html", values, share=_share)


def _title(label: object) -> str:
    return lesion_class(str(label)).title


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    """Images, lesions, and patients, which are 0 where the source names none."""
    return {
        "images": len(rows),
        "lesions": int(rows["lesion_id"].nunique()),
        "patients": int(rows["patient_id"].nunique()),
    }


def _by(table: pd.DataFrame, values: "pd.Series[str]") -> dict[str, dict[str, int]]:
    """Counts of each value, the most frequent first."""
    return {str(value): _counts(table[values == value]) for value in values.value_counts(sort=True).index}


def _by_class(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for label, images in table.groupby("label"):
        known = lesion_class(str(label))
        splits = {split: _counts(images[images["split"] == split]) for split in SPLITS}
        rows.append({"known": known, "all": _counts(images), "splits": splits})
    return rows


def _credits(table: pd.DataFrame) -> list[tuple[str, int]]:
    """Whom to name, and for how many images, the most first, then by name."""
    counts = table["attribution"].dropna().value_counts()
    named = [(str(name), int(count)) for name, count in counts.items()]
    return sorted(named, key=lambda one: (-one[1], one[0]))


def _reasons(quarantined: pd.DataFrame) -> list[dict[str, Any]]:
    """Each reason, the most frequent first, with some thumbnails by image id."""
    found = []
    for reason, rows in quarantined.groupby("reason"):
        seen = rows[rows["thumbnail"].notna()].head(_SHOWN_OF_REASON)
        shown = list(zip(seen["image_id"], seen["thumbnail"], strict=True))
        found.append({"reason": str(reason), "images": len(rows), "shown": shown})
    return sorted(found, key=lambda one: -one["images"])


def _sizes(table: pd.DataFrame) -> dict[str, Any]:
    """The most frequent sizes in pixels, and the extremes by area."""
    counts = table.groupby(["width", "height"]).size().rename("images").reset_index()
    counts = counts.assign(area=counts["width"] * counts["height"])
    frequent = counts.sort_values(["images", "area"], ascending=False, kind="stable").head(_SHOWN_SIZES)
    by_area = counts.sort_values("area", kind="stable").to_dict("records")
    return {
        "frequent": frequent.to_dict("records"),
        "others": len(counts) - len(frequent),
        "of_others": int(counts["images"].sum() - frequent["images"].sum()),
        "smallest": by_area[0],
        "largest": by_area[-1],
    }


def _people(table: pd.DataFrame) -> dict[str, dict[Any, dict[Any, int]]]:
    """Images by attribute, group and split; what is not given comes last."""
    groups = groups_of(table.assign(ita=np.nan, lesion_share=np.nan))  # those two would be estimates
    found = {}
    for name in ("age", "sex", "site", "skin_tone", "dx_type"):
        counts = pd.crosstab(groups[name], table["split"]).reindex(columns=list(SPLITS), fill_value=0)
        frequent = counts.sum(axis=1).sort_values(ascending=False, kind="stable").index
        known = [str(group) for group in frequent if group != NOT_GIVEN]
        natural = {"age": AGES, "skin_tone": _TONES}.get(name, ()) if known else ()
        order = list(dict.fromkeys([*natural, *known, NOT_GIVEN]))  # a group without images is worth a line
        found[name] = counts.reindex(order, fill_value=0).to_dict("index")
    return found
