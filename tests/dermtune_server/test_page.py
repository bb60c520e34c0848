"""The page in a real browser: drop, read, print, save, a bad file, a keyboard, a phone, accessibility."""

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "secret"  # noqa: S105 (of a server on loopback)
Start = Callable[..., httpx.Client]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def base(start: Start) -> str:
    return str(start().base_url)


@pytest.fixture
def page(browser: Browser, base: str) -> Iterator[Page]:
    """The page, which may ask its own server alone and write no error to its console."""
    opened = browser.new_page()
    elsewhere: list[str] = []
    errors: list[str] = []

    def note(url: str) -> None:
        if not url.startswith((base, "data:", "blob:")):
            elsewhere.append(url)

    opened.on("request", lambda request: note(request.url))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(base)
    yield opened
    opened.close()
    assert not elsewhere
    assert not errors


def png(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 40), color).save(file, "PNG")
    return file.getvalue()


def drop(page: Page, **files: bytes) -> None:
    """As a person drops files on the page."""
    content = {f"{name}.png": list(data) for name, data in files.items()}
    transfer = page.evaluate_handle(
        """content => {
            const transfer = new DataTransfer();
            for (const [name, data] of Object.entries(content))
                transfer.items.add(new File([new Uint8Array(data)], name));
            return transfer;
        }""",
        content,
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(page.locator("article")).to_have_count(len(files))
    expect(page.locator("#actions")).to_be_visible()


def test_dropped_images_are_answered_and_a_bad_file_says_why(page: Page) -> None:
    expect(page.locator("#notice")).to_contain_text("Research use only")
    drop(page, red=png("red"), bad=b"no image")
    red, bad = page.locator("article").all()
    expect(red.locator(".named")).to_contain_text("Nearest to: Melanoma. Malignant: ")
    expect(red.locator(".decisions tbody tr")).to_have_count(1)
    expect(red.locator(".decisions tbody")).to_contain_text(
        "when tuned, 92% of such lesions reached it, 19% of others"
    )
    expect(red.locator("meter")).to_have_count(3)
    expect(red.locator(".set")).to_contain_text("Cannot be ruled out")
    expect(red.locator(".abstain")).to_be_hidden()
    expect(bad.locator(".error")).to_contain_text("Not answered: this file: not a JPEG")
    expect(page.locator("#status")).to_have_text("2 images, 1 could not be read.")


def test_an_abstention_comes_before_everything_else(page: Page) -> None:
    drop(page, white=png("white"))
    expect(page.locator(".abstain")).to_contain_text("do not rely on what it says below. The image is")
    expect(page.locator(".abstain")).to_contain_text("too bright")


def test_the_slider_shows_where_the_model_looked(page: Page) -> None:
    drop(page, red=png("red"))
    lit = page.locator(".lit")
    assert lit.evaluate("image => getComputedStyle(image).opacity") == "0"
    page.locator("article input").fill("100")
    assert lit.evaluate("image => getComputedStyle(image).opacity") == "1"
    assert lit.evaluate("image => image.naturalWidth") == 56


def test_answers_are_saved_as_csv_and_printed(page: Page) -> None:
    drop(page, red=png("red"), bad=b"no image")
    with page.expect_download() as waiting:
        page.click("#csv")
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert [row["image"] for row in rows] == ["red.png", "bad.png"]
    assert rows[0]["predicted"] == "mel"
    assert rows[1]["error"].startswith("this file: not a JPEG")
    assert "Research use only" in rows[0]["notice"]
    assert page.pdf().startswith(b"%PDF-")
    page.emulate_media(media="print")
    expect(page.locator("#ask")).to_be_hidden()
    expect(page.locator(".named")).to_be_visible()
    for on_paper in page.locator(".on-paper").all():
        expect(on_paper).to_be_visible()
        expect(on_paper).to_contain_text("Research use only")


def test_a_name_is_text_and_a_formula_in_it_is_not_run(page: Page) -> None:
    drop(page, **{"=1+1<img src=x onerror=alert(1)>": b"no image"})
    expect(page.locator("article h2")).to_have_text("=1+1<img src=x onerror=alert(1)>.png")
    with page.expect_download() as waiting:
        page.click("#csv")
    assert "\"'=1+1<img" in Path(waiting.value.path()).read_text()


def test_the_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.wait_for_timeout(200)  # playwright does not wait until the browser listens
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "blue.png", "mimeType": "image/png", "buffer": png("blue")})
    expect(page.locator(".named")).to_contain_text("Basal cell carcinoma")
    page.locator("#clear").press("Enter")
    expect(page.locator("article")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_no_rule_of_accessibility_is_broken(page: Page, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 800})
    drop(page, red=png("red"), white=png("white"), bad=b"no image")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing scrolls sideways"


def test_the_token_is_asked_for_and_then_borne(browser: Browser, start: Start) -> None:
    opened = browser.new_page()
    opened.goto(str(start(token=TOKEN).base_url))
    opened.locator("#token").fill("secret")
    opened.locator("#token").press("Enter")
    expect(opened.locator("#notice")).to_contain_text("Research use only")
    expect(opened.locator("#token-row")).to_be_hidden()
    drop(opened, red=png("red"))
    expect(opened.locator(".named")).to_contain_text("Melanoma")
    opened.close()
