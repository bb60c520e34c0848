import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dermtune.backbone import load_backbone
from dermtune.errors import DataError
from dermtune.params import Params
from dermtune.shards import open_array
from dermtune.stages.embed import embed, embed_files
from dermtune.table import table_sha256


def test_activations_are_the_trunks(params: Params, augmented: Path, embedded: Path) -> None:
    trunk = load_backbone(params.backbone).trunk
    for name in ("train-00.npy", "train-01.npy", "val.npy"):
        views, stored = open_array(augmented / name), open_array(embedded / name)
        with torch.inference_mode():
            expected = trunk(torch.from_numpy(np.array(views[:5])).permute(0, 3, 1, 2).float()).numpy()
        assert stored.dtype == np.float16
        assert len(stored) == len(views)
        assert np.allclose(stored[:5], expected, rtol=2e-3, atol=2e-3)


def test_the_fingerprint_names_what_they_were_made_from(
    params: Params, embedded: Path, ingested: Path
) -> None:
    fingerprint = json.loads((embedded / "activations.json").read_text())
    assert fingerprint["cut"] == params.backbone.cut
    assert fingerprint["views"]["images_sha256"] == table_sha256(ingested)
    assert tuple(fingerprint["shape"]) == open_array(embedded / "val.npy").shape[1:]


def test_activations_that_were_cut_off_are_vouched_for_by_nothing(
    params: Params, augmented: Path, embedded: Path, tmp_path: Path
) -> None:
    shutil.copytree(embedded, tmp_path / "out")
    shutil.copytree(augmented, tmp_path / "views")
    np.save(tmp_path / "views/train-01.npy", np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="re-run augment"):
        embed(params.embed, backbone=params.backbone, views=tmp_path / "views", out=tmp_path / "out")
    assert not (tmp_path / "out/activations.json").exists()


def test_views_of_another_size_are_refused(params: Params, augmented: Path, tmp_path: Path) -> None:
    backbone = params.backbone.model_copy(update={"input_size": 96})
    with pytest.raises(DataError, match=r"train-00\.npy: views are 64 pixels wide, not 96; re-run augment"):
        embed(params.embed, backbone=backbone, views=augmented, out=tmp_path)


def test_missing_views_are_named(params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"views\.json: missing or damaged; re-run augment"):
        embed(params.embed, backbone=params.backbone, views=tmp_path, out=tmp_path / "out")
    (tmp_path / "views.json").write_text("{}")
    with pytest.raises(DataError, match=r"no train-00\.npy"):
        embed(params.embed, backbone=params.backbone, views=tmp_path, out=tmp_path / "out")


def test_activations_that_do_not_fit_their_type_are_refused(params: Params, tmp_path: Path) -> None:
    views = np.zeros((3, 8, 8, 3), np.uint8)
    np.save(tmp_path / "views.npy", views)

    def run(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for batch in batches:
            yield np.full((len(batch), 4, 2, 2), 70_000, np.float32).astype(params.embed.dtype)

    with (
        np.errstate(over="ignore"),
        pytest.raises(DataError, match=r"views: an activation is too large for float16.*embed\.dtype"),
    ):
        embed_files(params.embed, lambda: run, [tmp_path / "views.npy"], (4, 2, 2), tmp_path / "out")
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_batch_of_one_that_is_left_over_is_embedded_too(
    params: Params, augmented: Path, embedded: Path, tmp_path: Path
) -> None:
    rows = len(open_array(augmented / "val.npy"))
    config = params.embed.model_copy(update={"batch_size": rows - 1})
    embed(config, backbone=params.backbone, views=augmented, out=tmp_path)
    assert np.allclose(
        open_array(tmp_path / "val.npy"), open_array(embedded / "val.npy"), rtol=2e-3, atol=2e-3
    )
