import numpy as np
import pytest

from dermtune.studies.neighbors import map_of, measure_agreement, nearest


def test_neighbours_are_of_other_lesions_and_each_of_its_own() -> None:
    angles = np.radians([0, 1, 2, 10, 30, 90])
    references = np.c_[np.cos(angles), np.sin(angles)] * np.array([[1], [5], [1], [2], [1], [1]])
    lesions = np.array(["a", "b", "b", "c", "a", "d"], object)
    queries = references[[0, 5]]
    rows, cosines = nearest(queries, lesions[[0, 5]], references, lesions, count=2)
    assert rows.tolist() == [[1, 3], [4, 3]]
    np.testing.assert_allclose(cosines, np.cos(np.radians([[1, 10], [60, 80]])))
    rows, _ = nearest(queries, np.array(["z", "z"], object), references, lesions, count=9)
    assert rows.tolist() == [[0, 1, 3], [5, 4, 3]]


def test_more_images_than_fit_at_once_are_the_same() -> None:
    rng = np.random.default_rng(0)
    queries, references = rng.normal(size=(300, 5)), rng.normal(size=(20, 5))
    lesions, others = np.arange(20).astype(str).astype(object), np.full(300, "z", object)
    rows, cosines = nearest(queries, others, references, lesions, count=3)
    one, own = nearest(queries[270:271], others[:1], references, lesions, count=3)
    np.testing.assert_array_equal(rows[270], one[0])
    np.testing.assert_allclose(cosines[270], own[0])


def test_agreement_is_as_by_hand() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = np.array([[0, 0], [0, 1], [0, 1], [0, 0], [1, 0], [0, 0], [1, 1], [0, 1]])
    known = np.array([0, 0, 0, 1, 1]), np.array(["a", "a", "b", "c", "c"], object)
    groups = np.arange(8).astype(str).astype(object)
    table = measure_agreement(
        {"whole": found, "frozen": found[:, ::-1] * 0},
        labels,
        groups,
        known,
        classes=("mel", "nv", "df"),
        draws=500,
        rng=np.random.default_rng(1),
    )
    rows = table.set_index(["space", "label"])
    assert rows["share"]["whole"].to_dict() == pytest.approx({"mel": 0.75, "nv": 0.5, "all": 0.625})
    assert rows["share"]["frozen"].to_dict() == pytest.approx({"mel": 1, "nv": 0, "all": 0.5})
    assert rows["chance"]["whole"].to_dict() == pytest.approx({"mel": 2 / 3, "nv": 1 / 3, "all": 0.5})
    assert rows["images"]["whole"].to_dict() == {"mel": 4, "nv": 4, "all": 8}
    low, high = rows.loc[("whole", "all"), ["low", "high"]]
    assert 0.3 < low < 0.5
    assert 0.75 < high < 0.95


def test_images_that_are_alike_lie_near_each_other_on_the_map() -> None:
    rng = np.random.default_rng(3)
    centers = np.repeat(np.eye(3, 16), 12, axis=0)
    embeddings = centers + rng.normal(0, 0.02, (36, 16))
    spots = map_of(embeddings, seed=1)
    middles = spots.reshape(3, 12, 2).mean(1)
    within = np.linalg.norm(spots - np.repeat(middles, 12, axis=0), axis=1).max()
    apart = np.linalg.norm(middles[[0, 1, 2]] - middles[[1, 2, 0]], axis=1).min()
    assert apart > 2 * within
    np.testing.assert_array_equal(spots, map_of(embeddings, seed=1))
    assert map_of(embeddings[:3], seed=1).shape == (3, 2)
