"""Golden cases are drawn, decode to the pixels that were run, and are the same each time."""

from collections.abc import Callable

import numpy as np

from dermtune.golden import golden_cases
from dermtune_bundle.decode import decode
from dermtune_bundle.graph import Graph


def test_each_image_gives_its_probabilities_again(make_graph: Callable[..., bytes]) -> None:
    graph = Graph(make_graph())
    cases, files = golden_cases(graph, count=3)
    assert [case.file for case in cases] == list(files) == ["golden-0.png", "golden-1.png", "golden-2.png"]
    for case in cases:
        again = graph.run(decode(files[case.file], name=case.file))
        assert np.array_equal(again.probabilities, np.float32(case.probabilities))
    assert len({case.probabilities for case in cases}) == len(cases), "different images"
    assert golden_cases(graph, count=3) == (cases, files)
