from pathlib import Path

from matplotlib.figure import Figure

from dermtune.studies.overview import Section, write_study


def write(out: Path, title: str) -> None:
    figure = Figure(figsize=(1, 1))
    write_study(out, "<p>all of it", figure, Section(title, "It is <so>.", "a line"))


def test_the_overview_shows_each_study_and_leads_to_its_page(tmp_path: Path) -> None:
    write(tmp_path / "attacks", "Under attack")
    write(tmp_path / "where", "Where it looks")
    page = (tmp_path / "studies.html").read_text()
    assert page.index("Under attack") < page.index("Where it looks")
    assert page.count("It is &lt;so&gt;.") == 2
    assert page.count("data:image/png;base64,") == 2
    assert 'href="where/where.html"' in page
    assert (tmp_path / "where" / "where.html").read_text() == "<p>all of it"


def test_a_damaged_study_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path / "attacks", "Under attack")
    (tmp_path / "attacks" / "section.json").write_text('{"path": "../../etc"}')
    write(tmp_path / "where", "Where it looks")
    page = (tmp_path / "studies.html").read_text()
    assert "Under attack" not in page
    assert "Where it looks" in page
