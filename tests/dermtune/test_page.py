import re

import pytest
from jinja2 import UndefinedError
from pandas import DataFrame

from dermtune.drift import Recent
from dermtune.drift_report import Look, render_drift
from dermtune.page import amount, data_uri, render_page
from dermtune.upkeep import MonitorConfig

CONFIG = MonitorConfig(days=7, least=20, level=0.01, effect=0.2, unanswered=0.2)


def test_a_page_runs_nothing_fetches_nothing_and_escapes_what_it_shows() -> None:
    recent = Recent(DataFrame({"abstains": []}), failed=0)
    page = render_drift(Look(recent.table, recent, [], CONFIG, "<b>bold", "<script>alert(1)</script>"))

    assert "default-src 'none'" in page
    assert not re.search(r"<script|<b>bold|(?:src|href)=\"(?!data:|#)", page)
    assert page.count("<body>") == page.count("</html>") == 1


def test_a_value_that_is_missing_is_a_defect() -> None:
    with pytest.raises(UndefinedError, match="look"):
        render_page("drift.html", {})


def test_an_image_is_its_own_address() -> None:
    assert data_uri(b"\x00\xff", "png") == "data:image/png;base64,AP8="


@pytest.mark.parametrize(
    ("count", "text"),
    [(4_650_000, "4.65 million"), (12, "12"), (123_456, "123 thousand"), (2.5e9, "2.5 billion")],
)
def test_large_numbers_are_words(count: float, text: str) -> None:
    assert amount(count) == text
