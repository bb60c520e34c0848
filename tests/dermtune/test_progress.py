import pytest

from dermtune.progress import progress


def test_items_pass_through_and_nothing_is_drawn_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), "count", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
