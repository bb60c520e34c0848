from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermtune.params import Params
from dermtune.studies import AttacksConfig, trials
from dermtune.studies.adversary import NAMED, Decision
from dermtune.studies.images import Images
from dermtune.studies.kept import Kept
from dermtune.studies.trials import (
    Outcome,
    Target,
    Trial,
    measure_attacks,
    plan,
    rows_to_attack,
    still_right,
)


@pytest.fixture
def config(params: Params) -> AttacksConfig:
    return params.study.attacks.model_copy(
        update={"linf": [1, 2], "l2": [0.1, 0.2], "patch": [0.2], "steps": 7, "queries": 60}
    )


def decision(name: str, right: list[int]) -> Decision:
    return Decision(name, lambda probabilities: probabilities, np.array(right))


@pytest.fixture
def target() -> Target:
    """Three images of class 0; the graph is never asked, for `change` and `judge` are given by each test."""
    clean = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    images = Images(np.zeros((3, 4, 4, 3), np.uint8), np.zeros(3, np.int64), pd.DataFrame(), ("a", "b"))
    decisions = {NAMED: decision(NAMED, [0, 0, 0]), "mel": decision("mel", [0, -1, -1])}
    return Target(None, images, clean, decisions, {}, {NAMED: 2, "mel": 2})  # type: ignore[arg-type]


def outcome(rows: list[int], right: list[float], **changes: object) -> Outcome:
    trial = replace(Trial("white", NAMED, "pgd", "linf", 1, 7), **changes)  # type: ignore[arg-type]
    probabilities = np.array([[one, 1 - one] for one in right]).reshape(len(rows), 2)
    return Outcome(trial, np.array(rows, np.int64), probabilities, np.ones(len(rows)), np.ones(len(rows)))


def test_an_image_is_felled_by_the_strongest_attack_that_fells_it(target: Target) -> None:
    named = target.decisions[NAMED]
    assert still_right(named, target.clean, []).tolist() == [True, True, False]
    weak, strong = outcome([0, 1], [0.8, 0.3]), outcome([0, 1], [0.1, 0.9])
    assert still_right(named, target.clean, [weak]).tolist() == [True, False, False]
    assert still_right(named, target.clean, [weak, strong]).tolist() == [False, False, False]
    assert still_right(target.decisions["mel"], target.clean, [weak]).tolist() == [True, False, False]


def test_what_fell_is_spared_but_by_attacks_that_have_a_curve_of_their_own(
    target: Target, config: AttacksConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: dict[str, list[int]] = {}

    def fell_the_second(trial: Trial, rows: np.ndarray, *_: object, **__: object) -> dict[str, object]:
        tried[trial.name] = rows.tolist()
        felled = [[0.1, 0.9] if row == 1 else [0.9, 0.1] for row in rows]
        return {"probabilities": felled, "linf": [1.0] * len(rows), "l2": [0.1] * len(rows)}

    monkeypatch.setattr(trials, "_try", fell_the_second)
    measure_attacks(target, config, seed=1, kept=Kept(tmp_path / "kept.json", made_from="x"))
    assert tried.pop(f"noise {NAMED} noise patch 0.2 0") == [0, 1, 2]
    full = {name: rows for name, rows in tried.items() if " fgsm " in name or f"{NAMED} pgd l" in name}
    assert len(full) == 8 + 3  # two attacks, two norms, two sizes; other steps; without bounds
    assert all(rows == [0, 1] for rows in full.values())  # the third is wrong without any attack
    assert tried[f"white {NAMED} apgd_ce linf 1 7"] == [0]
    assert tried[f"black {NAMED} square linf 1 60"] == [0, 1]
    assert tried[f"black {NAMED} square linf 2 60"] == [0]
    assert tried["white mel pgd l2 0.1 7"] == [0]
    assert tried["white mel apgd_ce l2 0.1 7"] == [0]


def test_attacks_on_two_classes_and_on_seven_differ_by_the_ratio_of_logits(
    target: Target, config: AttacksConfig
) -> None:
    seven = replace(target, classes={NAMED: 7, "mel": 2})
    more = {one.name for one in plan(seven, config)} - {one.name for one in plan(target, config)}
    assert len(more) == 4
    assert all(name.startswith(f"white {NAMED} apgd_dlr l") for name in more)


def test_what_was_measured_is_not_measured_again(
    target: Target, config: AttacksConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def measure(trial: Trial, rows: np.ndarray, *_: object, **__: object) -> dict[str, object]:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(trial.name)
        fallen = [[0.4, 0.6]] * len(rows)
        return {"probabilities": fallen, "linf": [1.0] * len(rows), "l2": [0.1] * len(rows)}

    monkeypatch.setattr(trials, "_try", measure)
    path = tmp_path / "kept.json"
    with pytest.raises(KeyboardInterrupt):
        measure_attacks(target, config, seed=1, kept=Kept(path, made_from="x"))
    before, calls[:] = [*calls], []
    monkeypatch.setattr(trials, "_try", lambda trial, rows, *_, **__: calls.append(trial.name) or {
        "probabilities": [[0.4, 0.6]] * len(rows), "linf": [1.0] * len(rows), "l2": [0.1] * len(rows)
    })  # fmt: skip
    outcomes = measure_attacks(target, config, seed=1, kept=Kept(path, made_from="x"))
    assert not {*before} & {*calls}
    assert (
        [*before, *calls]
        == [one.trial.name for one in outcomes]
        == [one.name for one in plan(target, config)]
    )


def test_half_of_the_images_are_of_the_classes_in_focus_and_lesions_come_before_their_second_images() -> None:
    labels = np.repeat([0, 1, 2], [40, 8, 12])
    lesions = np.array(
        [f"{label}-{number // 2}" for label, count in ((0, 40), (1, 8), (2, 12)) for number in range(count)]
    )
    rows = rows_to_attack(labels, lesions.astype(object), 16, focus=[1], seed=3)
    assert np.bincount(labels[rows]).tolist() == [4, 8, 4]
    assert len(set(lesions[rows][labels[rows] != 1])) == 8  # a lesion each
    assert (np.diff(rows) > 0).all()
    few = rows_to_attack(labels, lesions.astype(object), 8, focus=[1], seed=3)
    assert len(set(lesions[few][labels[few] == 1])) == 4
    assert (rows_to_attack(labels, lesions.astype(object), 8, focus=[1], seed=4) != few).any()


@pytest.mark.parametrize(("most", "expected"), [(100, [40, 8, 12]), (30, [11, 8, 11]), (58, [38, 8, 12])])
def test_where_a_half_has_too_few_the_other_gives_more(most: int, expected: list[int]) -> None:
    labels = np.repeat([0, 1, 2], [40, 8, 12])
    lesions = np.arange(60).astype(str).astype(object)
    assert np.bincount(labels[rows_to_attack(labels, lesions, most, focus=[1], seed=3)]).tolist() == expected
