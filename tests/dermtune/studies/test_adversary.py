import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dermtune.errors import ConfigError
from dermtune.params import Params
from dermtune.studies.adversary import (
    Flagging,
    Naming,
    Scores,
    attack,
    attacks_on,
    flagging,
    judge,
    load_art,
    naming,
    random_patch,
    seed_of,
    square_attack,
    target_columns,
    whole_pixels,
)
from dermtune.studies.images import Images, read_images
from dermtune.tails import read_tails
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import Contract


@pytest.fixture(scope="module")
def contract(calibrated: Path) -> Contract:
    return Contract.parse((calibrated / "model.json").read_text(), source="model.json")


@pytest.fixture(scope="module")
def scores(params: Params, finetuned: Path, contract: Contract) -> Scores:
    return Scores(read_tails(finetuned, backbone=params.backbone), contract)


@pytest.fixture(scope="module")
def graph(calibrated: Path) -> Graph:
    return Graph.open(calibrated / "model.onnx", threads=1)


@pytest.fixture(scope="module")
def val(params: Params, ingested: Path) -> Images:
    return read_images(ingested, "val", params.backbone.input_size)


class Brightness(nn.Module):
    """Two classes: is the mean of the pixels above 100?"""

    def forward(self, pixels: Tensor) -> Tensor:
        above = pixels.mean((1, 2, 3)) - 100
        return torch.stack([above, -above], dim=1)


def test_the_attacked_module_is_the_graph(scores: Scores, graph: Graph, val: Images) -> None:
    with torch.inference_mode():
        ours = scores(torch.from_numpy(val.pixels[:6]).float()).exp().numpy()
    np.testing.assert_allclose(ours, judge(graph, val.pixels[:6]), atol=1e-5)


def test_decisions_of_the_module_are_those_of_the_contract(
    scores: Scores, contract: Contract, graph: Graph, val: Images
) -> None:
    pixels = torch.from_numpy(val.pixels).float()
    probabilities = judge(graph, val.pixels)
    with torch.inference_mode():
        named = Naming(scores, contract)(pixels).argmax(1).numpy()
    assert (named == contract.named(probabilities)).all()
    rows = np.arange(len(named))
    decision = naming(contract, val.labels)
    assert (decision.holds(probabilities, rows) == (contract.named(probabilities) == val.labels)).all()
    for point in contract.operating_points:
        columns = target_columns(contract, point)
        flagged = probabilities[:, columns].sum(1) >= point.threshold
        with torch.inference_mode():
            ours = Flagging(scores, contract, point)(pixels)[:, 0].numpy() >= 0
        assert (ours == flagged).all(), point.name
        positive = np.isin(val.labels, columns)
        assert (
            flagging(contract, val.labels, point).holds(probabilities, rows) == (flagged & positive)
        ).all()


@pytest.mark.parametrize(
    ("name", "norm", "eps"),
    [
        ("fgsm", "linf", 3),
        ("pgd", "linf", 3),
        ("apgd_ce", "linf", 3),
        ("fgsm", "l2", 0.6),
        ("pgd", "l2", 0.6),
        ("apgd_ce", "l2", 0.6),
        ("pgd", "patch", 0.5),
    ],
)
def test_an_attack_changes_the_decision_within_its_bounds(name: str, norm: str, eps: float) -> None:
    images = np.full((3, 32, 32, 3), 101, np.uint8)  # 2 grey levels of each pixel decide; L2: 0.43
    changed = attack(
        name,
        Brightness(),
        images,
        np.zeros(3, np.int64),
        norm=norm,  # type: ignore[arg-type]
        eps=eps,
        classes=2,
        steps=20,
        seed=1,
    )
    difference = changed.astype(float) - images
    assert (changed.mean((1, 2, 3)) < 100).all()
    if norm == "linf":
        assert np.abs(difference).max() <= eps
    elif norm == "l2":
        assert np.sqrt((difference**2).sum((1, 2, 3))).max() <= eps * 255
    else:
        assert not difference[:, 16:].any()
        assert not difference[:, :, 16:].any()


def test_the_same_seed_gives_the_same_attack_and_leaves_numpys_state_alone(
    scores: Scores, contract: Contract, val: Images
) -> None:
    module, size = Naming(scores, contract), len(contract.classes)
    before = np.random.get_state()[1].copy()  # noqa: NPY002

    def made(seed: int) -> np.ndarray:
        arguments = {"norm": "linf", "eps": 2, "classes": size, "steps": 2, "seed": seed}
        return attack("pgd", module, val.pixels[:2], val.labels[:2], **arguments)

    first = made(1)
    assert (first == made(1)).all()
    assert (first != made(2)).any()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_gradient_step_lowers_the_right_score_on_the_graph(
    scores: Scores, contract: Contract, graph: Graph, val: Images
) -> None:
    size = len(contract.classes)
    changed = attack(
        "apgd_dlr",
        Naming(scores, contract),
        val.pixels[:8],
        val.labels[:8],
        norm="linf",
        eps=8,
        classes=size,
        steps=3,
        seed=1,
    )
    decision, rows = naming(contract, val.labels), np.arange(8)
    before, after = (decision.holds(judge(graph, pixels), rows).sum() for pixels in (val.pixels[:8], changed))
    assert after < before


def test_the_ratio_of_logits_needs_three_classes() -> None:
    assert "apgd_dlr" in attacks_on("linf", classes=3)
    assert "apgd_dlr" not in attacks_on("linf", classes=2)
    assert attacks_on("patch", classes=7) == ["pgd"]


def test_the_black_box_asks_about_an_image_once_and_no_more_often_than_it_may() -> None:
    images = np.full((2, 32, 32, 3), 108, np.uint8)
    images[1] = 250  # stays bright whatever is done
    asked: list[bytes] = []

    def ask(pixels: np.ndarray) -> np.ndarray:
        asked.extend(one.tobytes() for one in pixels)
        above = pixels.mean((1, 2, 3)) - 107.0
        return np.stack([above, -above], axis=1)

    changed = square_attack(ask, images, np.zeros(2, np.int64), eps=4, classes=2, queries=30, seed=3)
    assert len(asked) == len(set(asked))
    assert len(asked) <= 2 * (30 + 1)  # and once as it is
    assert np.abs(changed.astype(int) - images).max() == 4
    assert changed[0].mean() < 107


def test_random_pixels_stay_in_their_corner() -> None:
    images = np.zeros((2, 40, 40, 3), np.uint8)
    noise = random_patch(images, eps=0.25, seed=1)
    assert not noise[:, 10:].any()
    assert not noise[:, :, 10:].any()
    assert noise[:, :10, :10].mean() == pytest.approx(127.5, abs=12)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 0.05, 0.3]), st.floats(0.1, 30), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_whole_pixels_are_within_the_ball(seed: int, l2: float, spread: float, linf: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    changed = images + rng.normal(0, spread, images.shape)
    whole = whole_pixels(changed, images, norm="l2", eps=l2).astype(float)
    assert (np.sqrt(((whole - images) ** 2).sum((1, 2, 3))) <= l2 * 255 + 1e-9).all()
    whole = whole_pixels(changed, images, norm="linf", eps=linf).astype(float)
    assert np.abs(whole - images).max() <= linf


def test_of_a_ball_too_small_for_all_the_largest_changes_stay() -> None:
    images = np.full((1, 1, 4, 1), 100, np.uint8)
    changed = images + np.array([0.4, -2.6, 1.2, 0.9]).reshape(images.shape)
    # 0, -3, 1, 1: the norm is 11 ** 0.5; within 10 ** 0.5, the last and smallest is taken back
    whole = whole_pixels(changed, images, norm="l2", eps=10**0.5 / 255 + 1e-9)
    assert whole.ravel().tolist() == [100, 97, 101, 100]


def test_each_attack_has_a_seed_of_its_own() -> None:
    assert len({seed_of(1, ["pgd 1"]), seed_of(1, ["pgd 2"]), seed_of(2, ["pgd 1"])}) == 3
    assert seed_of(1, ["pgd 1"]) == seed_of(1, ["pgd 1"])


def test_art_writes_nothing_into_the_home_folder(tmp_path: Path) -> None:
    code = "from dermtune.studies.adversary import load_art; load_art(); import os; print(os.environ['HOME'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path)
    assert not [*tmp_path.glob(".art*")]


def test_without_art_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "art" or name.startswith("art.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoArt(), *sys.meta_path])
    with pytest.raises(ConfigError, match=r"pip install 'dermtune\[study\]'"):
        load_art()


class _NoArt:
    def find_spec(self, name: str, *_: object) -> None:
        if name == "art":
            raise ImportError(name)
