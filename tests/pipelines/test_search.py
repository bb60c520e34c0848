from collections.abc import Callable
from pathlib import Path

import pytest
from pipelines.search import search
from pipelines.train import read_graph

SEARCH = """\
stages:
  search:
    cmd: mkdir -p data/search && echo '{}' > data/search/best.json
    wdir: ..
    outs:
      - data/search:
          cache: false
"""


@pytest.mark.usefixtures("server")
def test_the_search_beside_the_pipeline_is_one_task(make_project: Callable[..., Path]) -> None:
    project = make_project()
    (project / "search").mkdir()
    (project / "search/dvc.yaml").write_text(SEARCH)
    first = search(project, return_state=True)
    assert (first.name, first.message) == ("Completed", "ran")
    assert (project / "data/search/best.json").read_text() == "{}\n"
    assert search(project, return_state=True).name == "Cached"
    assert "search/dvc.yaml:search" not in read_graph(project)
