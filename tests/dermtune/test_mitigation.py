import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dermtune.backbone import Tail
from dermtune.mitigation import GroupWeights, balanced_order, cells, independent_weights
from dermtune.recipe import FinetuneConfig, Mitigation
from dermtune.training import Examples, predict_logits, train_tail

# 6 images of class 0 and 6 of class 1; group 0 has mostly the one, group 1 mostly the other
LABELS = torch.tensor([0] * 6 + [1] * 6)
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1])


def weigh(kind: Mitigation, labels: Tensor = LABELS, groups: Tensor = GROUPS) -> GroupWeights:
    return GroupWeights(kind, labels, groups, step=0.5, device="cpu")


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_weights_are_as_by_hand() -> None:
    weights = independent_weights(LABELS, GROUPS)
    frequent, rare = 0.5 * 0.5 / (4 / 12), 0.5 * 0.5 / (2 / 12)
    assert weights.tolist() == pytest.approx([frequent] * 4 + [rare] * 4 + [frequent] * 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60), st.integers(0, 99))
def test_class_frequencies_stay_those_of_the_training_images(pairs: list[tuple[int, int]], seed: int) -> None:
    """What undoes the loss's class weights (`prior_shift`) takes them for that."""
    labels, groups = (torch.tensor(column) for column in zip(*pairs, strict=True))
    count = torch.bincount(labels)
    weighs = torch.zeros(len(count)).index_add_(0, labels, independent_weights(labels, groups))
    assert torch.allclose(weighs, count.float(), rtol=1e-5)
    order = balanced_order(labels, groups, generator(seed))
    assert torch.equal(torch.bincount(labels[order], minlength=len(count)), count)
    # of each class, the groups that have it come alike
    drawn, there = cells(labels[order], groups[order]), cells(labels, groups) > 0
    for label in range(drawn.shape[1]):
        own = drawn[: len(there), label][there[: len(drawn), label]]
        assert len(own) == 0 or own.max() - own.min() <= 1


def test_in_each_group_the_classes_weigh_as_in_all() -> None:
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(3, size=200))
    groups = torch.from_numpy((rng.random(200) < (1 + labels.numpy()) / 5).astype(np.int64))
    weights = independent_weights(labels, groups)
    weighed = torch.zeros(2, 3).index_put_((groups, labels), weights, accumulate=True)
    shares = weighed / weighed.sum(1, keepdim=True)
    assert torch.allclose(shares, (torch.bincount(labels) / 200).expand(2, 3), atol=1e-5)


def test_balanced_drawing_leaves_out_no_image_of_a_small_group_and_depends_on_the_seed_alone() -> None:
    labels = torch.tensor([0] * 12)
    groups = torch.tensor([0] * 9 + [1] * 3)
    order = balanced_order(labels, groups, generator())
    assert sorted(order[groups[order] == 1].tolist()) == [9, 9, 10, 10, 11, 11]
    assert len(set(order[groups[order] == 0].tolist())) == 6
    assert torch.equal(order, balanced_order(labels, groups, generator()))
    assert not torch.equal(order, balanced_order(labels, groups, generator(2)))


def test_without_mitigation_order_and_loss_are_plain() -> None:
    weights = GroupWeights("none", LABELS, None, step=0.5, device="cpu")
    assert torch.equal(weights.order(generator()), torch.randperm(12, generator=generator()))
    losses = torch.rand(5)
    assert torch.equal(weights.loss(losses, torch.arange(5), 5), losses.mean())
    assert weights.weights is None


def test_a_mitigation_needs_groups() -> None:
    with pytest.raises(ValueError, match="group_dro needs the group of each image"):
        GroupWeights("group_dro", LABELS, None, step=0.5, device="cpu")


def test_a_step_of_group_dro_is_as_by_hand() -> None:
    """Groups and classes are independent here: no image weighs more than another of its group."""
    labels, groups = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    weights = weigh("group_dro", labels, groups)
    losses = torch.tensor([1.0, 3.0, 0.0, 1.0])
    loss = weights.loss(losses, torch.arange(4), 4)
    worse, better = math.exp(0.5 * 2.0), math.exp(0.5 * 0.5)
    share = worse / (worse + better)
    assert weights.weights is not None
    assert weights.weights.tolist() == pytest.approx([share, 1 - share])
    assert float(loss) == pytest.approx(share * 2.0 + (1 - share) * 0.5)


def test_a_group_that_the_batch_lacks_keeps_its_weight_but_for_the_scale() -> None:
    labels, groups = torch.tensor([0, 1] * 3), torch.tensor([0, 0, 1, 1, 2, 2])
    weights = weigh("group_dro", labels, groups)
    weights.loss(torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([0, 1, 2, 3]), 4)
    assert weights.weights is not None
    assert weights.weights[0] == pytest.approx(float(weights.weights[1]))
    assert float(weights.weights[2] / weights.weights[0]) == pytest.approx(math.exp(-0.5))


def test_group_dro_keeps_class_frequencies_though_a_group_lacks_a_class() -> None:
    labels, groups = torch.tensor([0] * 6 + [1] * 4), torch.tensor([0] * 3 + [1] * 3 + [0] * 4)
    weights = weigh("group_dro", labels, groups)
    everything, by_class = torch.arange(10), []
    for label in (0, 1):
        before = weights.weights
        assert before is not None
        before.copy_(torch.tensor([0.3, 0.7]))
        losses = torch.zeros(10, requires_grad=True)  # no loss moves no weight
        weights.loss(losses, everything, len(everything)).backward()  # type: ignore[no-untyped-call]
        assert losses.grad is not None
        by_class.append(float(losses.grad[labels == label].sum()))
    assert by_class == pytest.approx([0.6, 0.4], abs=1e-6)


RECIPE = FinetuneConfig(
    epochs=15,
    head_epochs=0,
    batch_size=32,
    lr=0.03,
    layer_decay=1.0,
    weight_decay=0.05,
    warmup=0.1,
    class_balance=0.0,
    decision_balance=0.0,
    mitigation="none",
    groups="sex",
    group_step=0.05,
    label_smoothing=0.0,
    dropout=0.0,
    ema=0.9,
    patience=15,
    ensemble=1,
    folds=0,
    device="cpu",
)


def planted(seed: int, count: int) -> tuple[Examples, Tensor]:
    """A sign of the disease that is faint, and a shortcut that is clear but wrong in one person of ten."""
    rng = np.random.default_rng(seed)
    labels, groups = rng.integers(2, size=count), (rng.random(count) < 0.1).astype(np.int64)
    sign, shortcut = 2 * labels - 1, (2 * labels - 1) * (1 - 2 * groups)
    means = np.stack([0.8 * sign, 2.5 * shortcut, np.zeros(count)], axis=1)
    features = (means + rng.normal(0, 1, (count, 3))).astype(np.float32)[:, :, None, None]
    return Examples([features], torch.from_numpy(labels), groups=torch.from_numpy(groups)), torch.from_numpy(
        groups
    )


def test_mitigations_raise_the_accuracy_of_a_group_that_training_left_behind() -> None:
    train, _ = planted(1, 400)
    val, groups = planted(2, 4000)
    worst = {}
    kinds: tuple[Mitigation, ...] = ("none", "reweighting", "group_balanced", "group_dro")
    for kind in kinds:
        tail = Tail([nn.Conv2d(3, 8, 1), nn.ReLU()], 8, 2, dropout=0.0, seed=1)
        recipe, monitored = RECIPE.model_copy(update={"mitigation": kind}), val.only(torch.arange(20))
        trained, _ = train_tail(
            tail, train, monitored, recipe, seed=1, device="cpu", description=None, keep="last"
        )
        right = (predict_logits(trained, val, "cpu").argmax(1) == val.labels).double()
        worst[kind] = min(float(right[groups == group].mean()) for group in (0, 1))
    assert worst["none"] < 0.35
    assert worst["group_dro"] > worst["none"] + 0.25
    assert worst["group_balanced"] > worst["none"] + 0.25
    # group and class are independent here, and it leaves a small group small
    assert worst["reweighting"] == pytest.approx(worst["none"], abs=0.1)
