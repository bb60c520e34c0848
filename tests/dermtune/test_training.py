import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dermtune import training
from dermtune.backbone import Tail, load_backbone
from dermtune.checkpoint import Resume
from dermtune.config import BackboneConfig
from dermtune.errors import DataError, DivergedError
from dermtune.recipe import FinetuneConfig
from dermtune.training import (
    EpochRecord,
    Examples,
    class_frequencies,
    class_weights,
    learning_rate_factor,
    predict_logits,
    train_tail,
)

CLASSES, COUNT = 3, 60


def config(**changes: object) -> FinetuneConfig:
    values = {
        "epochs": 4,
        "head_epochs": 1,
        "batch_size": 16,
        "lr": 0.003,
        "layer_decay": 0.8,
        "weight_decay": 0.02,
        "warmup": 0.1,
        "class_balance": 1.0,
        "decision_balance": 1.0,
        "mitigation": "none",
        "groups": "sex",
        "group_step": 0.01,
        "label_smoothing": 0.0,
        "dropout": 0.2,
        "ema": 0.9,
        "patience": 4,
        "ensemble": 1,
        "folds": 0,
        "device": "cpu",
    }
    return FinetuneConfig.model_validate(values | changes)


def make_tail(seed: int = 1) -> Tail:
    torch.manual_seed(seed)
    unit = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return Tail([unit, nn.Conv2d(8, 8, 1)], 8, CLASSES, dropout=0.2, seed=seed)


def make_examples(seed: int, views: int = 2) -> Examples:
    """Each class has a channel that is brighter."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=COUNT)
    bright = np.eye(4)[labels][:, :, None, None]
    arrays = [(rng.normal(0, 1, (COUNT, 4, 5, 5)) + bright).astype(np.float16) for _ in range(views)]
    return Examples(arrays, torch.from_numpy(labels))


def train(folder: Path, recipe: FinetuneConfig | None = None, *, fingerprint: str = "one", seed: int = 1):  # noqa: ANN201
    return train_tail(
        make_tail(),
        make_examples(1),
        make_examples(2, views=1),
        recipe or config(),
        seed=seed,
        device="cpu",
        resume=Resume(folder / "checkpoint.safetensors", fingerprint),
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_it_learns(tmp_path: Path) -> None:
    tail, history = train(tmp_path, config(epochs=15, lr=0.02))
    val = make_examples(2, views=1)
    predicted = predict_logits(tail, val, "cpu").argmax(1)
    assert (predicted == val.labels).double().mean() > 0.9
    assert history[-1].val_loss < history[0].val_loss


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    one, _ = train(tmp_path / "one")
    again, _ = train(tmp_path / "again")
    other, _ = train(tmp_path / "other", seed=2)
    assert same(one, again)
    assert not same(one, other)


def test_without_mitigation_it_trains_to_the_bit_as_a_plain_loop() -> None:
    recipe, examples, steps = config(class_balance=0.5, label_smoothing=0.1), make_examples(1), 4
    tail = make_tail().to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(tail)
    optimizer = torch.optim.AdamW(
        training._parameter_groups(tail, recipe), weight_decay=recipe.weight_decay, fused=True
    )
    weights = class_weights(examples.labels, class_frequencies(examples.labels, CLASSES), 0.5)
    for epoch in range(4):
        torch.manual_seed(1 + epoch)
        order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1 + epoch))
        tail.train()
        tail.units.train(epoch > 0)
        tail.units.requires_grad_(epoch > 0)
        for step, images in enumerate(order.tensor_split(steps)):
            for group in optimizer.param_groups:
                factor = learning_rate_factor((epoch * steps + step) / (4 * steps), recipe.warmup)
                group["lr"] = group["peak_lr"] * factor
            activations, labels = examples.batch(epoch, images, "cpu")
            losses = nn.functional.cross_entropy(
                tail(activations), labels, reduction="none", label_smoothing=0.1
            )
            optimizer.zero_grad()
            (losses * weights[labels]).mean().backward()
            optimizer.step()
            training._average(averaged, tail, decay=recipe.ema, updates=epoch * steps + step)
    grouped = replace(examples, groups=torch.arange(COUNT) % 2)  # which groups there are changes nothing
    for train in (examples, grouped):
        val = make_examples(2, views=1)
        found, _ = train_tail(make_tail(), train, val, recipe, seed=1, device="cpu", keep="last")
        assert same(found, averaged)


def test_the_last_epoch_is_given_back_where_validation_is_to_choose_nothing() -> None:
    def trained(val: Examples) -> Tail:
        recipe = config(lr=0.5, epochs=3)
        return train_tail(make_tail(), make_examples(1), val, recipe, seed=1, device="cpu", keep="last")[0]

    assert same(trained(make_examples(2, views=1)), trained(make_examples(3, views=1)))


@pytest.mark.parametrize("mitigation", ["reweighting", "group_balanced", "group_dro"])
def test_a_mitigation_changes_training_and_a_resumed_one_ends_alike(
    mitigation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, validate, calls = config(mitigation=mitigation, group_step=0.5), training.validate, []
    examples = make_examples(1)
    grouped = replace(examples, groups=(torch.arange(COUNT) % 5 == 0).long() + examples.labels % 2)

    def learn(folder: Path) -> tuple[Tail, list[EpochRecord]]:
        resume = Resume(folder / "checkpoint.safetensors", "one")
        val = make_examples(2, views=1)
        return train_tail(make_tail(), grouped, val, recipe, seed=1, device="cpu", resume=resume)

    def cut_off(*args: Any) -> dict[str, float]:  # noqa: ANN401
        calls.append(args)
        if len(calls) == 3:
            raise _CutOffError
        return validate(*args)

    whole, history = learn(tmp_path / "whole")
    assert not same(whole, train(tmp_path / "none")[0])
    with monkeypatch.context() as patch:
        patch.setattr(training, "validate", cut_off)
        with pytest.raises(_CutOffError):
            learn(tmp_path / "cut")
    resumed, resumed_history = learn(tmp_path / "cut")
    assert len(calls) == 3
    assert resumed_history == history
    assert same(resumed, whole)


class _CutOffError(Exception):
    pass


def interrupt(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fingerprint: str) -> None:
    """Train until the third epoch is being validated; the checkpoint of the second stays."""
    validate, calls = training.validate, []

    def cut_off(*args: Any) -> dict[str, float]:  # noqa: ANN401
        calls.append(args)
        if len(calls) == 3:
            raise _CutOffError
        return validate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "validate", cut_off)
        with pytest.raises(_CutOffError):
            train(folder, fingerprint=fingerprint)
    assert (folder / "checkpoint.safetensors").is_file()


def test_a_resumed_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, whole_history = train(tmp_path / "whole")
    interrupt(tmp_path, monkeypatch, fingerprint="one")

    caplog.set_level("INFO", "dermtune")
    resumed, resumed_history = train(tmp_path, fingerprint="one")

    assert "resumed after epoch 2" in caplog.text
    assert resumed_history == whole_history
    assert same(whole, resumed)


def test_a_training_that_is_over_is_not_run_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when the run was interrupted after it, in the next tail of an ensemble."""
    whole, whole_history = train(tmp_path)
    caplog.set_level("INFO", "dermtune")
    caplog.clear()
    again, history = train(tmp_path)
    said = [record.message for record in caplog.records if record.name.startswith("dermtune")]
    assert said == ["resumed after epoch 4"]
    assert history == whole_history
    assert same(whole, again)


def test_a_checkpoint_of_another_run_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, _ = train(tmp_path / "whole")
    interrupt(tmp_path, monkeypatch, fingerprint="another")

    caplog.set_level("INFO", "dermtune")
    fresh, _ = train(tmp_path, fingerprint="one")

    assert "is of another run and is not resumed" in caplog.text
    assert "resumed after" not in caplog.text
    assert same(whole, fresh)


def test_a_damaged_checkpoint_is_not_resumed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no tensors")
    _, history = train(tmp_path)
    assert len(history) == 4
    assert "cannot be read and is not resumed" in caplog.text


def test_no_batch_is_of_one_image() -> None:
    """Its statistics over one value for each channel would be none, and torch refuses them."""
    examples = make_examples(1, views=1)
    odd = Examples([examples.views[0][:9, :, :1, :1]], examples.labels[:9])
    _, history = train_tail(make_tail(), odd, odd, config(batch_size=2), seed=1, device="cpu")
    assert len(history) == 4


def test_validation_images_of_one_class_are_refused() -> None:
    val = make_examples(2, views=1)
    alike = val.only(torch.nonzero(val.labels == 1)[:, 0])
    with pytest.raises(DataError, match="all validation images are of one class"):
        train_tail(make_tail(), make_examples(1), alike, config(), seed=1, device="cpu")


def test_a_training_that_diverges_says_what_to_do() -> None:
    broken = make_examples(2, views=1)
    broken.views[0][0] = np.nan
    with pytest.raises(DivergedError, match=r"lower finetune\.lr"):
        train_tail(
            make_tail(),
            make_examples(1),
            broken,
            config(),
            seed=1,
            device="cpu",
        )


def test_the_head_learns_alone_first(tmp_path: Path) -> None:
    before = make_tail()
    tail, _ = train(tmp_path, config(epochs=1, head_epochs=1))
    assert same(before.units, tail.units)
    assert not same(before.classifier, tail.classifier)


def test_training_stops_early_and_keeps_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    areas, seen = iter([0.6, 0.9, 0.8, 0.7, 0.95]), []

    def measured(averaged: Tail, *_: object) -> dict[str, float]:
        seen.append(copy.deepcopy(averaged))
        return {"val_loss": 1.0, "val_auroc": next(areas), "val_balanced_accuracy": 0.5}

    monkeypatch.setattr(training, "validate", measured)
    tail, history = train(tmp_path, config(epochs=5, patience=2))
    assert [record.val_auroc for record in history] == [0.6, 0.9, 0.8, 0.7]
    assert same(tail, seen[1])
    assert not same(tail, seen[-1])


def test_the_best_epoch_ranks_and_names_well() -> None:
    def record(area: float, balanced_accuracy: float) -> EpochRecord:
        return EpochRecord(0, 0.0, 1.0, 1.0, area, balanced_accuracy)

    history = [record(0.962, 0.72), record(0.961, 0.75), record(0.93, 0.76)]
    assert training._best(history) is history[1]


def test_epoch_reads_view_modulo_views() -> None:
    examples = make_examples(1, views=2)
    rows = torch.tensor([5, 3])
    for epoch, view in ((0, 0), (1, 1), (2, 0), (7, 1)):
        activations, labels = examples.batch(epoch, rows, "cpu")
        assert torch.equal(activations, torch.from_numpy(examples.views[view][[5, 3]]).float())
        assert torch.equal(labels, examples.labels[rows])


def test_the_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    assert learning_rate_factor(0.05, 0.1) == pytest.approx(0.5, abs=0.01)
    assert learning_rate_factor(0.1, 0.1) == 1
    assert learning_rate_factor(0.55, 0.1) == pytest.approx(0.5)
    assert learning_rate_factor(0.999, 0.1) == pytest.approx(0, abs=1e-4)


def test_class_weights_make_classes_weigh_the_same() -> None:
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    frequencies = class_frequencies(labels, 3)
    assert frequencies.tolist() == [0.6, 0.3, 0.1]
    assert torch.allclose(class_weights(labels, frequencies, 0.0), torch.ones(3))
    weights = class_weights(labels, frequencies, 1.0)
    assert torch.allclose(weights * torch.bincount(labels), torch.full((3,), 10 / 3))
    halfway = class_weights(labels, frequencies, 0.5)
    assert float(halfway[labels].mean()) == pytest.approx(1)
    assert float(halfway[2] / halfway[0]) == pytest.approx(6**0.5)
    assert class_frequencies(torch.tensor([0]), 2).tolist() == [0.5, 0.5], "a class that is missing"


def test_some_of_the_images_are_those_images() -> None:
    examples = replace(make_examples(1), groups=torch.arange(COUNT))
    images = torch.tensor([7, 3, 50])
    some = examples.only(images)
    assert some.groups is not None
    assert some.groups.tolist() == [7, 3, 50]
    expected, labels = examples.batch(1, images[[2, 0]], "cpu")
    found, found_labels = some.batch(1, torch.tensor([2, 0]), "cpu")
    assert torch.equal(found, expected)
    assert torch.equal(found_labels, labels)
    assert torch.equal(
        some.only(torch.tensor([1])).batch(0, torch.tensor([0]), "cpu")[1], examples.labels[[3]]
    )


def test_activations_on_the_device_give_the_same_batches() -> None:
    examples = make_examples(1)
    there = Examples([torch.from_numpy(view) for view in examples.views], examples.labels)
    for mine, theirs in zip(
        examples.batch(1, torch.tensor([5, 2]), "cpu"),
        there.batch(1, torch.tensor([5, 2]), "cpu"),
        strict=True,
    ):
        assert torch.equal(mine, theirs)
    assert examples.resident("cpu") is examples, "only a GPU's memory is worth filling"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_trains_on_activations_that_live_there_and_resumes(tmp_path: Path) -> None:
    def train(epochs: int, name: str = "checkpoint") -> list[EpochRecord]:
        there, val = make_examples(1).resident("cuda"), make_examples(2, views=1)
        assert all(isinstance(view, torch.Tensor) and view.is_cuda for view in there.views)
        resume, recipe = Resume(tmp_path / f"{name}.safetensors", "one"), config(epochs=epochs)
        return train_tail(make_tail(), there, val, recipe, seed=1, device="cuda", resume=resume)[1]

    before = train(2)
    history = train(8)
    assert history[:2] == before
    assert train(2, "one") == train(2, "another"), "a GPU gives the same again"
    assert history[-1].train_loss < before[0].train_loss


def test_validation_judges_the_probabilities_and_decisions_that_are_shipped() -> None:
    """Where it knows nothing, one that learned from weighted classes says `frequency ** (1 - balance)`."""
    frequencies, val = np.array([0.7, 0.2, 0.1]), make_examples(2, views=1)
    tail = make_tail()
    with torch.no_grad():
        tail.classifier.weight.zero_()
        tail.classifier.bias.copy_(torch.from_numpy(np.log(frequencies**0.5)))
    found = training.validate(tail, val, frequencies, config(class_balance=0.5, decision_balance=0.0), "cpu")
    expected = -np.log(frequencies)[val.labels.numpy()].mean()
    assert found["val_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["val_balanced_accuracy"] == pytest.approx(1 / 3)


def test_each_block_back_learns_more_slowly() -> None:
    groups = training._parameter_groups(make_tail(), config(layer_decay=0.5, lr=0.01))
    assert sorted({group["peak_lr"] for group in groups}) == [0.0025, 0.005, 0.01]
    undecayed = [group for group in groups if group.get("weight_decay") == 0]
    assert {parameter.ndim for group in undecayed for parameter in group["params"]} == {1}


def test_frozen_weights_and_statistics_stay_bit_identical() -> None:
    backbone = BackboneConfig(name="tf_efficientnet_lite0", weights="package", cut=6, input_size=64)
    network = load_backbone(backbone)
    tail = network.tail(CLASSES, dropout=0.1, seed=1)
    whole = nn.Sequential(network.trunk, tail).train()
    before = {name: value.clone() for name, value in network.trunk.state_dict().items()}
    unfrozen = {name: value.clone() for name, value in tail.state_dict().items()}
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 255, (24, 3, 64, 64))).float()
    with torch.no_grad():
        activations = whole[0](pixels).numpy()
    labels = torch.arange(24) % CLASSES
    examples = Examples([activations], labels)
    train_tail(
        tail,
        examples,
        examples,
        config(epochs=2, head_epochs=0),
        seed=1,
        device="cpu",
    )
    after = network.trunk.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    running = [name for name in unfrozen if name.endswith("running_mean")]
    assert running
    assert not any(torch.equal(unfrozen[name], tail.state_dict()[name]) for name in running)


class _Small(nn.Module):
    """Has room for few images, as a GPU may."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.seen = room, set[int]()

    def forward(self, activations: Tensor) -> Tensor:
        self.seen.add(len(activations))
        if self.training and len(activations) > self.room:
            raise torch.OutOfMemoryError
        return activations


def with_room(room: int, **changes: object) -> tuple[Tail, _Small]:
    """Train a tail without batch norm and dropout, of which pieces would be another thing."""
    small, recipe = _Small(room), config(dropout=0.0, **changes)
    torch.manual_seed(1)
    tail = Tail([small, nn.Conv2d(4, 8, 3), nn.ReLU()], 8, CLASSES, dropout=0.0, seed=1)
    grouped = replace(make_examples(1), groups=torch.arange(COUNT) % 2)
    trained, _ = train_tail(
        tail, grouped, make_examples(2, views=1), recipe, seed=1, device="cpu", keep="last"
    )
    return trained, small


def test_a_batch_that_finds_no_room_goes_in_pieces_whose_gradients_are_added_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, _ = with_room(16)
    caplog.set_level("WARNING", "dermtune")
    in_pieces, small = with_room(4)
    assert 15 in small.seen
    assert {3, 4} <= small.seen
    assert "no room for 15 images; going on with 7 at once" in caplog.text
    assert "no room for 7 images; going on with 3 at once" in caplog.text
    for value, other in zip(whole.state_dict().values(), in_pieces.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-4)


def test_what_cannot_go_in_pieces_is_told() -> None:
    with pytest.raises(DataError, match=r"no room for 3 images; lower finetune\.batch_size"):
        with_room(1)
    with pytest.raises(DataError, match=r"no room for 15 images; lower finetune\.batch_size"):
        with_room(4, mitigation="group_dro")
