import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dermtune.studies.localisation import (
    MEASURES,
    SIDE,
    THRESHOLDS,
    Judged,
    Looked,
    best_map,
    centred_gaussian,
    compare_groups,
    compare_methods,
    energy_inside,
    mean_mask,
    measure_methods,
    overlap_by_other_half,
    overlaps,
    peak,
    points_inside,
    stretch,
)

LEFT = np.zeros((SIDE, SIDE), bool)
LEFT[:, : SIDE // 2] = True


def disc(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return np.hypot(rows - row * SIDE, columns - column * SIDE) < radius * SIDE


def test_a_map_points_to_the_middle_of_its_highest_cell() -> None:
    activation = np.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.2, 0.9, 0.0]])
    assert peak(activation) == (0.75, 0.625)
    assert not points_inside(activation, LEFT)
    assert points_inside(activation, ~LEFT)
    assert points_inside(activation[:, ::-1], LEFT)


def test_energy_is_the_share_of_the_sum_inside() -> None:
    heat = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert energy_inside(heat, np.array([[True, False], [False, True]])) == 0.5
    assert np.isnan(energy_inside(np.zeros((2, 2)), np.ones((2, 2), bool)))


def test_overlap_is_that_of_what_is_lit_above_a_share_of_the_maximum() -> None:
    heat = np.array([[1.0, 0.5], [0.3, 0.0]])
    found = overlaps(heat, np.array([[True, False], [False, True]]))
    by_threshold = dict(zip(THRESHOLDS.round(2), found, strict=True))
    assert by_threshold[0.2] == pytest.approx(1 / 4)  # three lit, one of them in a lesion of two
    assert by_threshold[0.4] == pytest.approx(1 / 3)
    assert by_threshold[0.6] == pytest.approx(1 / 2)
    assert np.isnan(overlaps(np.zeros((2, 2)), np.ones((2, 2), bool))).all()


def test_what_speaks_against_a_class_stays_dark() -> None:
    heat = stretch(np.array([[-5.0, 1.0], [-5.0, 1.0]]))
    assert heat.shape == (SIDE, SIDE)
    assert heat[:, 0].max() == 0
    assert heat[:, -1].min() == 1


@given(
    hnp.arrays(np.float32, (7, 7), elements=st.floats(-4, 4, width=32)),
    st.tuples(*[st.floats(0.2, 0.8)] * 2, st.floats(0.05, 0.4)),
)
def test_measures_are_shares_and_do_not_depend_on_a_maps_scale(
    activation: np.ndarray, place: tuple[float, float, float]
) -> None:
    mask = disc(*place)
    heat = stretch(activation)
    if heat.sum() < 1e-3:
        return
    inside, lit = energy_inside(heat, mask), overlaps(heat, mask)
    assert 0 <= inside <= 1 + 1e-9
    assert inside + energy_inside(heat, ~mask) == pytest.approx(1)
    assert ((lit >= 0) & (lit <= 1)).all()
    assert energy_inside(4 * heat, mask) == pytest.approx(inside)
    np.testing.assert_allclose(overlaps(4 * heat, mask), lit)


def test_a_threshold_is_chosen_on_the_other_half_of_the_lesions() -> None:
    curves = np.zeros((8, len(THRESHOLDS)))
    groups = np.repeat(np.array(["a", "b", "c", "d"], object), 2)
    _, thresholds = overlap_by_other_half(curves, groups, seed=3)
    assert thresholds == (THRESHOLDS[0], THRESHOLDS[0])
    first = np.isin(groups, np.random.default_rng(3).permutation(np.unique(groups))[:2])
    curves[first, 4] = 1.0  # each half has a best threshold of its own …
    curves[~first, 9] = 0.8
    curves[first, 9] = 0.3
    found, thresholds = overlap_by_other_half(curves, groups, seed=3)
    assert thresholds == (THRESHOLDS[9], THRESHOLDS[4])
    assert set(found[first]) == {0.3}, "… and is judged at the other's"
    assert set(found[~first]) == {0.0}


def test_blind_maps_are_of_the_training_lesions() -> None:
    mean = mean_mask([LEFT, LEFT, ~LEFT, np.ones_like(LEFT)])
    assert mean[0, 0] == 0.75
    assert mean[0, -1] == 0.5
    bell = centred_gaussian(mean_mask([disc(0.5, 0.5, 0.2)]))
    row, column = peak(bell)
    assert abs(row - 0.5) < 0.01
    assert abs(column - 0.5) < 0.01
    # a disc's places have a deviation of half its radius along each axis
    assert bell[SIDE // 2, SIDE // 2 + round(0.1 * SIDE)] == pytest.approx(np.exp(-0.5), abs=0.05)


def test_the_best_map_is_the_share_of_each_cell() -> None:
    np.testing.assert_allclose(best_map(LEFT, (2, 4)), [[1, 1, 0, 0]] * 2)
    np.testing.assert_allclose(best_map(LEFT, (1, 3)), [[1, 0.5, 0]], atol=0.02)


def cell(row: int, column: int) -> np.ndarray:
    activation = np.full((4, 4), -1.0)
    activation[row, column] = 1.0
    return activation


@pytest.fixture(scope="module")
def judged() -> Judged:
    """Lesions in the upper left; of the last one, in the lower right."""
    masks = np.stack([disc(0.4, 0.4, 0.2)] * 11 + [disc(0.875, 0.875, 0.1)])
    labels = ["mel"] * 6 + ["nv"] * 6
    names = [f"G{row}" for row in range(12)]
    return Judged(
        pd.DataFrame({"label": labels, "group_id": names, "lesion_id": names}), masks, outlined=12, left_out=0
    )


@pytest.fixture(scope="module")
def looked() -> list[Looked]:
    """The map shown is right but for the first image; its untrained rivals are wrong; one map is dark."""
    maps = [{"shown": cell(3, 3)}, *({"shown": cell(1, 1)} for _ in range(10)), {"shown": cell(3, 3)}]
    maps = [one | {"untrained 0": cell(0, 3), "untrained 1": one["shown"]} for one in maps]
    maps[5] |= {"shown": -np.ones((4, 4))}
    maps[7] |= {"occlusion": cell(1, 1)}
    maps[8] |= {"occlusion": cell(3, 3)}
    return [Looked(0, one) for one in maps]


def test_methods_are_held_against_blind_maps_on_their_own_images(
    judged: Judged, looked: list[Looked]
) -> None:
    mean = mean_mask([disc(0.4, 0.4, 0.2)])
    blind = {"mean_mask": mean, "gaussian": centred_gaussian(mean)}
    measured = measure_methods(looked, judged, blind, seed=1)
    assert tuple(measured) == ("shown", "occlusion", "untrained", "mean_mask", "gaussian", "best")
    np.testing.assert_array_equal(np.isnan(measured["shown"].pointing), np.arange(12) == 5)
    table = compare_methods(measured, judged.groups, draws=200, seed=1).set_index(["method", "measure"])
    pointing = table.xs("pointing", level="measure")
    assert pointing["images"].to_dict() == {
        "shown": 11, "occlusion": 2, "untrained": 12, "mean_mask": 12, "gaussian": 12, "best": 12,
    }  # fmt: skip
    assert pointing["value"]["shown"] == pytest.approx(10 / 11)
    assert pointing["value"]["mean_mask"] == pytest.approx(11 / 12)
    # on the 11 images that have a map, both miss one, each another
    assert pointing["over_mean_mask"]["shown"] == pytest.approx(0)
    assert pointing["over_mean_mask_low"]["shown"] < 0 < pointing["over_mean_mask_high"]["shown"]
    assert pointing["value"]["occlusion"] == pytest.approx(0.5)
    assert pointing["over_shown"]["occlusion"] == pytest.approx(-0.5)
    assert pointing["value"]["untrained"] == pytest.approx(0.5 * 11 / 12)
    assert pointing["value"]["best"] == 1
    assert table["value"]["best", "overlap"] > table["value"]["shown", "overlap"]
    assert pd.isna(table["over_mean_mask"]["gaussian", "energy"])
    assert (table["low"].dropna() <= table["value"][table["low"].notna()]).all()


def test_groups_are_the_classes_and_what_was_named_rightly(judged: Judged, looked: list[Looked]) -> None:
    mean = mean_mask([disc(0.4, 0.4, 0.2)])
    measured = measure_methods(looked, judged, {"mean_mask": mean, "gaussian": mean}, seed=1)
    is_right = np.arange(12) > 0
    table = compare_groups(measured, judged, is_right, draws=200, seed=1)
    found = table[table["method"] == "shown"].set_index(["group", "measure"])
    assert [*dict.fromkeys(table["group"])] == ["mel", "nv", "named rightly", "named wrongly"]
    assert len(found) == 4 * len(MEASURES)
    assert found["value"]["mel", "pointing"] == pytest.approx(4 / 5)
    assert found["value"]["nv", "pointing"] == 1
    assert found["value"]["named wrongly", "pointing"] == 0
    assert found["images"]["named rightly", "pointing"] == 10
