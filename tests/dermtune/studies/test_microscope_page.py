import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from dermtune.studies.microscope_page import microscope_figure, render_microscope, verdict_on
from dermtune.studies.microscope_views import Case, Channel, Given, LayerView, Map, Near, Patch
from dermtune_bundle.manifest import Diagnosis

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MODEL = {"auroc": 0.93, "low": 0.87, "high": 0.97}


def picture(color: str, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(file, kind)
    return file.getvalue()


def agreement() -> pd.DataFrame:
    return pd.DataFrame(
        {"space": space, "label": label, "images": 9, "share": share, "low": low, "high": high, "chance": 0.5}
        for space, share in (("whole", 0.75), ("trained", 0.7), ("frozen", 0.25))
        for label, low, high in (("mel", None, None), ("nv", 0.2, 0.8), ("all", 0.1, 0.9))
    )


def depths() -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": layer, "frozen": layer == "stem", "auroc": value, "low": value - 0.1, "high": value + 0.1}
        for layer, value in (("stem", 0.6), ("head", 0.85))
    )


def shown() -> Map:
    near = [Near("t<1>", "nv", 0.91)]
    cases = [
        Case("v<0>", "mel", "mel", 0.8, 0, 0, near, [1]),
        Case("v1", "nv", "mel", 0.6, 1, 1, near, [2]),
        Case("v2", "nv", "nv", 0.7, 2, 0, near, [1]),
    ]
    classes = [Diagnosis("mel", "Melanoma", malignant=True), Diagnosis("nv", "Nevus", malignant=False)]
    colors = {"v<0>": "red", "v1": "green", "v2": "blue", "t<1>": "white"}
    return Map(cases, classes, {name: picture(color) for name, color in colors.items()})


def render() -> str:
    jpeg, png = picture("red"), picture("red", "PNG")
    channel = Channel(7, "mel", (0.8, 0.7, 0.9), [Patch("t<1>", "nv", jpeg, jpeg)], 3.0, jpeg, 8.0)
    undefined = Channel(9, "nv", (None, None, None), [], 3.0, None, None)
    values: dict[str, Any] = {
        "agreement": agreement(),
        "depths": depths(),
        "model": MODEL,
        "filters": [png],
        "note": "n is <3>",
        "verdict": "so",
    }
    return render_microscope(
        shown(),
        [LayerView("stem", True, 4, (32, 8, 8), (0.6, 0.5, 0.7), [channel, undefined])],  # noqa: FBT003
        Given("<given>", None, jpeg, {"mel": 0.2, "nv": 0.8}, [], [("stem", png, [(3, 2.5, png)])]),
        **values,
    )


def test_the_page_says_what_is_undefined_and_escapes_what_it_is_given() -> None:
    page = render()
    told = re.sub(r"base64,[^)\"]*", "", page)
    assert not re.search(r"\bnan\b", told)
    assert "None" not in told
    assert "AUROC undefined" in told
    assert "<script" not in told
    for name in ("v&lt;0&gt;", "t&lt;1&gt;", "&lt;given&gt;", "n is &lt;3&gt;"):
        assert name in told
    assert not re.search(r"<(0|1|3|given)>", told)
    assert "Nevus 80%, Melanoma 20%" in told
    # a picture that several cards show is in the page once
    assert told.count(".t3 {") == 1
    assert told.count('class="thumb t3"') == 3


def test_points_say_what_they_are() -> None:
    page = render()
    assert page.count("<path d=") == 1 + 1  # the malignant one, and its mark in the key
    assert page.count("<circle") == 2 + 1
    assert re.search(r'id="p1" class="k1 wrong"', page)
    assert re.search(r'id="p2" class="k1 right"', page)


def test_the_verdict_has_its_figures() -> None:
    text = verdict_on(agreement(), depths(), MODEL, neighbors=5)
    assert "Of the 5 training lesions nearest to an image, 75% [10%, 90%] are of its class" in text
    assert "by chance 50% would be, and by what the frozen layers see alone 25% [10%, 90%] are" in text
    assert (
        "0.60 [0.50, 0.70] in the stem and 0.85 [0.75, 0.95] in the head; the whole network 0.93 [0.87, 0.97]"
        in text
    )
    nothing = {"auroc": None, "low": None, "high": None}
    assert "whole network nothing that can be measured" in verdict_on(
        agreement(), depths(), nothing, neighbors=5
    )


def test_the_figure_has_both_panels_and_tells_what_is_frozen() -> None:
    left, right = microscope_figure(shown(), depths(), MODEL, note="n").axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["Melanoma, malignant (1)", "Nevus (2)"]
    assert [text.get_text() for text in right.texts] == ["frozen", "trained"]
    assert right.lines[0].get_ydata().tolist() == [0.6, 0.85]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_click_on_a_point_shows_its_image_and_its_neighbours(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "microscope.html"
    path.write_text(render(), encoding="utf-8")
    page = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    expect(page.locator(".card:visible")).to_have_count(0)
    expect(page.locator(".hint")).to_be_visible()
    page.locator("#p1").click()
    expect(page.locator(".card:visible")).to_have_count(1)
    expect(page.locator("#c1")).to_contain_text("The model names Melanoma, probability 60%")
    expect(page.locator(".hint")).to_be_hidden()
    page.locator("#c1").get_by_role("link").click()  # its neighbour on the map
    expect(page.locator("#c2")).to_be_visible()
    expect(page.locator("#c1")).to_be_hidden()
    drawn = page.locator("#c2 .thumb").first.evaluate("one => getComputedStyle(one).backgroundImage")
    assert drawn.startswith('url("data:image/jpeg;base64,')
    page.get_by_label("Nevus (2)").uncheck()
    expect(page.locator("#p1")).to_be_hidden()
    expect(page.locator("#p0")).to_be_visible()
    page.get_by_label("only those named wrongly").check()
    assert page.locator("#p0").evaluate("one => getComputedStyle(one).opacity") == "0.12"
    page.close()
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert not said
