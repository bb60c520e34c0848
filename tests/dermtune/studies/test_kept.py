from pathlib import Path

import pytest

from dermtune.studies import kept
from dermtune.studies.kept import Kept


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    assert Kept(path, made_from="this").get("one", lambda: {"area": 0.5}) == {"area": 0.5}
    assert Kept(path, made_from="this").get("one", pytest.fail) == {"area": 0.5}


@pytest.mark.parametrize("content", [None, "", "[]", '{"made_from": "that", "found": {"one": 1}}'])
def test_what_is_of_something_else_does_not_count(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "kept.json"
    if content is not None:
        path.write_text(content)
    assert Kept(path, made_from="this").get("one", lambda: 2) == 2


def test_what_other_code_measured_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    Kept(path, made_from="this").get("one", lambda: 1)
    monkeypatch.setattr(kept, "package_fingerprint", lambda: "of other code")
    assert Kept(path, made_from="this").get("one", lambda: 2) == 2


def test_a_measurement_that_fails_leaves_those_before_it(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    found = Kept(path, made_from="this")
    found.get("one", lambda: 1)
    with pytest.raises(ZeroDivisionError):
        found.get("two", lambda: 1 / 0)
    assert Kept(path, made_from="this").get("one", pytest.fail) == 1
    found.forget()
    assert not path.exists()
