import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from dermtune.studies.agreement import measure_agreement, rank_correlations, summarize_agreement
from dermtune.studies.localisation import SIDE, Judged, Looked

RISING = np.arange(16.0).reshape(4, 4)


def test_ranks_are_compared_with_their_signs_and_at_any_size() -> None:
    (found,) = rank_correlations([RISING - 100], [10 + RISING**3, -RISING, np.ones((4, 4))])
    np.testing.assert_allclose(found, [1, -1, np.nan])
    assert rank_correlations([RISING], [np.kron(RISING, np.ones((2, 2)))])[0, 0] > 0.9
    tied = np.round(RISING / 3)
    assert rank_correlations([RISING], [tied])[0, 0] == pytest.approx(
        spearmanr(RISING.ravel(), tied.ravel())[0]
    )


@pytest.fixture(scope="module")
def agreement() -> pd.DataFrame:
    """Grad-CAM is highest in the lower right, where the lesion is, of all images but the last."""
    inside = np.zeros((SIDE, SIDE), bool)
    inside[SIDE // 2 :, SIDE // 2 :] = True
    bumped = RISING.copy()
    bumped[0, 0] = 20  # nearly the same ranks, yet another maximum
    others = [RISING, -RISING, bumped, np.ones((4, 4)), RISING, None, RISING]
    masks = np.stack([inside] * 6 + [~inside])
    looked = [
        Looked(row % 2, {"grad_cam": RISING} | ({} if other is None else {"occlusion": other}))
        for row, other in enumerate(others)
    ]
    names = [f"I{row}" for row in range(7)]
    table = pd.DataFrame({"image_id": names, "group_id": names, "label": ["mel", "nv"] * 3 + ["mel"]})
    is_right = np.array([True, True, False, True, True, True, True])
    return measure_agreement(
        looked, Judged(table, masks, outlined=12, left_out=0), is_right, ["mel", "nv"], least=0.5
    )


def test_maps_agree_by_rank_and_by_where_they_are_highest(agreement: pd.DataFrame) -> None:
    found = agreement.set_index("image_id")
    assert found["agree"].to_dict() == {
        "I0": True, "I1": False, "I2": False, "I3": False, "I4": True, "I6": True,
    }  # fmt: skip
    assert found["correlation"]["I2"] > 0.5
    assert found["apart"]["I2"] == pytest.approx(0.75 * 2**0.5)
    assert not found["grad_cam_inside"]["I6"], "both beside the lesion agree as well"
    assert [*agreement["image_id"][:3]] == ["I3", "I1", "I2"], "the least alike first"
    # I1 beside the others' occlusion maps: RISING thrice, and bumped; the flat one tells nothing
    assert found["by_chance"]["I1"] == pytest.approx((3 + found["correlation"]["I2"]) / 4)
    assert found["named"]["I1"] == "nv"
    assert found["row"]["I6"] == 6


def test_shares_count_images(agreement: pd.DataFrame) -> None:
    table = summarize_agreement(agreement, draws=200, seed=1).set_index(["group", "measure"])
    assert table["value"]["all", "agree"] == pytest.approx(3 / 6)
    assert table["value"]["all", "grad_cam_alone"] == pytest.approx(3 / 6)
    assert table["value"]["all", "both_outside"] == pytest.approx(1 / 6)
    assert table["value"]["named wrongly", "agree"] == 0
    assert table["images"]["all", "correlation"] == 5, "a flat map has no ranks"
    assert table["images"]["mel", "agree"] == 4
    gain = (
        table["value"]["all", "correlation"] - agreement["by_chance"][agreement["correlation"].notna()].mean()
    )
    assert table["value"]["all", "above_chance"] == pytest.approx(gain)
    where = ["both_inside", "grad_cam_alone", "occlusion_alone", "both_outside"]
    assert table["value"]["nv"][where].sum() == pytest.approx(1)
