from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dermtune.backbone import Tail
from dermtune.params import Params
from dermtune.recipe import FinetuneConfig
from dermtune.studies.adversary import Naming, Scores, naming
from dermtune.studies.hardening import Attacked, attacked, calibrated, harden, measure_hardening, see, stands
from dermtune.studies.images import Images, read_images
from dermtune.tails import TrainedTails, read_tails
from dermtune.training import Examples
from dermtune_bundle.manifest import Contract


@pytest.fixture(scope="module")
def trained(params: Params, finetuned: Path) -> TrainedTails:
    return read_tails(finetuned, backbone=params.backbone)


@pytest.fixture(scope="module")
def contract(calibrated: Path) -> Contract:
    return Contract.parse((calibrated / "model.json").read_text(), source="model.json")


@pytest.fixture(scope="module")
def train(params: Params, ingested: Path) -> Images:
    return read_images(ingested, "train", params.backbone.input_size, most=32, seed=1)


@pytest.fixture(scope="module")
def val(params: Params, ingested: Path) -> Images:
    return read_images(ingested, "val", params.backbone.input_size)


@pytest.fixture(scope="module")
def seen(trained: TrainedTails, val: Images) -> Examples:
    return see(trained.trunk, val)


def test_a_step_of_training_attacks_within_its_bounds_and_leaves_the_tail_as_it_is(
    trained: TrainedTails, train: Images
) -> None:
    (tail,) = trained.tails
    tail.train()
    before = {name: value.clone() for name, value in tail.state_dict().items()}
    clean = torch.from_numpy(train.pixels[:8]).permute(0, 3, 1, 2).float()
    labels = torch.from_numpy(train.labels[:8])

    def loss(pixels: torch.Tensor) -> float:
        tail.eval()
        with torch.no_grad():
            found = float(torch.nn.functional.cross_entropy(tail(trained.trunk(pixels)), labels))
        tail.train()
        return found

    changed = attacked(trained.trunk, tail, clean, labels, eps=2, rng=torch.Generator().manual_seed(1))
    assert tail.training
    assert float((changed - clean).abs().max()) <= 2
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255
    assert loss(changed) > loss(clean)
    assert all(torch.equal(value, before[name]) for name, value in tail.state_dict().items())
    assert all(parameter.grad is None for parameter in tail.parameters())
    assert attacked(trained.trunk, tail, clean, labels, eps=0, rng=torch.Generator()) is clean
    tail.eval()


def test_each_repetition_shows_the_images_in_another_turn(trained: TrainedTails, train: Images) -> None:
    (tail,) = trained.tails
    count = len(train.labels)
    examples = Attacked(
        views=(),
        labels=torch.from_numpy(np.tile(train.labels, 2)),
        trunk=trained.trunk,
        tail=tail,
        pixels=train.pixels,
        eps=0,
        seed=1,
    )
    parts = [torch.tensor([3]), torch.tensor([count + 3])]
    (plain, label), (flipped, same) = examples.batches(0, parts, "cpu")
    assert int(label) == int(same) == train.labels[3]

    def trunk(pixels: np.ndarray) -> torch.Tensor:
        return trained.trunk(torch.from_numpy(pixels.copy())[None].permute(0, 3, 1, 2).float())

    torch.testing.assert_close(plain, trunk(train.pixels[3]))
    torch.testing.assert_close(flipped, trunk(train.pixels[3][::-1]))


def test_training_on_changes_copies_alone_and_the_same_seed_gives_the_same(
    params: Params, trained: TrainedTails, train: Images, seen: Examples
) -> None:
    config = params.study.attacks.hardening.model_copy(update={"epochs": 1})
    before = _numbers(trained.tails[0])

    def made(eps: float, recipe: FinetuneConfig = params.finetune) -> torch.Tensor:
        found = harden(trained, train, seen, recipe, config, eps=eps, seed=1)
        return _numbers(found.tails[0])

    first = made(4)
    assert torch.equal(_numbers(trained.tails[0]), before)
    assert not torch.equal(first, before)
    assert torch.equal(made(4), first)
    assert not torch.equal(made(0), first)
    # groups of people are not told here
    assert torch.equal(made(4, params.finetune.model_copy(update={"mitigation": "group_dro"})), first)


def _numbers(tail: Tail) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in tail.parameters()])


def test_the_shipped_tails_calibrated_anew_are_the_contracts(
    params: Params, trained: TrainedTails, contract: Contract, val: Images, seen: Examples
) -> None:
    # calibrate saw the images as the graph resizes them, here they come in its size
    goals = params.calibrate.operating_points
    found = calibrated(trained, seen, val, contract, goals)
    assert found.contract.calibration.logit_scale == pytest.approx(contract.calibration.logit_scale, rel=0.02)
    assert found.contract.calibration.logit_shift == pytest.approx(contract.calibration.logit_shift, rel=0.02)
    for ours, theirs in zip(found.points, contract.operating_points, strict=True):
        assert ours.name == theirs.name
        assert ours.threshold == pytest.approx(theirs.threshold, abs=0.02)


def test_what_is_wrong_at_once_does_not_stand_and_nothing_stands_a_change_without_bounds(
    trained: TrainedTails, contract: Contract, val: Images
) -> None:
    decision, module = naming(contract, val.labels), Naming(Scores(trained, contract), contract)
    with torch.inference_mode():
        right = module(torch.from_numpy(val.pixels).float()).argmax(1).numpy() == val.labels
    size = {"classes": len(contract.classes), "steps": 6, "seed": 1}
    little = stands(decision, module, val.pixels, norm="linf", eps=1, **size)
    all_of_it = stands(decision, module, val.pixels, norm="linf", eps=128, **size)
    assert not (little & ~right).any()
    assert all_of_it.sum() <= 1


def test_the_price_names_each_metric_for_both_trainings(
    params: Params, trained: TrainedTails, contract: Contract, train: Images, val: Images
) -> None:
    attacks = params.study.attacks
    hardening = attacks.hardening.model_copy(update={"epochs": 1})
    attacks = attacks.model_copy(update={"hardening": hardening, "steps": 2})
    study = params.study.model_copy(update={"attacks": attacks})
    few = params.model_copy(update={"study": study})
    found = measure_hardening(trained, contract, train, val, rows=np.arange(6), params=few)
    assert set(found["model"]) == {"unchanged", "attacked"}
    clean = found[(found["images"] == "clean") & (found["model"] == "attacked")]
    assert {"AUROC, macro", "Balanced accuracy", "Specificity, mel"} <= set(clean["metric"])
    after = found[(found["images"] == "attacked") & (found["model"] == "attacked")]
    assert after["metric"].tolist() == [
        "Accuracy, PGD, L∞, 1/255",
        "Accuracy, PGD, L2, 0.2",
        "Sensitivity, mel, PGD, L2, 0.2",
    ]
    told = found.dropna(subset=["difference"])
    pd.testing.assert_series_equal(told["difference"], told["value"] - told["shipped"], check_names=False)
