"""Mitigations: a training weighs groups of people, so that those whom it serves worst are served better.

    reweighting      in each group the classes weigh as they do among all images; groups weigh as they come
    group_balanced   the same by drawing: an epoch shows each class as often as ever, from all groups alike
    group_dro        the same weights, and the groups' own move to where the loss is highest

A group is one of an attribute of the image table; whoever's is not given is a group as well. Diagnosis and
group are independent in what each of them learns from, so that a group's share of a class tells nothing, and
the class frequencies are always those of the training images: what undoes the class weights of the loss
(`calibration.prior_shift`) stays right. The probabilities are those of a population in which each group has
the diagnoses of all. Where a disease is truly more frequent in a group (melanoma in the old), they are too
low there and too high elsewhere, and no temperature mends it: compare calibration by group before and after.

Source: Kamiran and Calders, Data preprocessing techniques for classification without discrimination,
Knowledge and Information Systems 2012 (reweighing); Idrissi, Arjovsky, Pezeshki and Lopez-Paz, Simple data
balancing achieves competitive worst-group-accuracy, CLeaR 2022 (sampling); Sagawa, Koh, Hashimoto and Liang,
Distributionally robust neural networks for group shifts, ICLR 2020, algorithm 1 (group DRO).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dermtune.distributed import all_sum

if TYPE_CHECKING:
    from dermtune.recipe import Mitigation


class GroupWeights:
    """How one training weighs its groups: the order in which images come, and the loss of a batch."""

    def __init__(
        self, kind: "Mitigation", labels: Tensor, groups: Tensor | None, *, step: float, device: str
    ) -> None:
        """Weigh the images of a training set.

        Args:
            kind: of mitigation.
            labels: (N,) int64 classes.
            groups: (N,) int64 groups; None: not known.
            step: of group DRO: how fast the groups' weights follow their losses, a batch.
            device: of the training.

        Raises:
            ValueError: the groups are needed and not known.
        """
        self._kind, self._labels, self._step = kind, labels, step
        self.weights: Tensor | None = None
        """(G,) float64: each group's weight by now, of those that change."""
        if kind == "none":
            return
        if groups is None:
            raise ValueError(f"{kind} needs the group of each image")
        _, self._groups = torch.unique(groups, return_inverse=True)
        if kind == "reweighting":
            self._images = independent_weights(labels, self._groups).to(device)
        elif kind == "group_dro":
            counts = cells(labels, self._groups)
            self._images = _within_groups(counts)[self._groups, labels].float().to(device)
            self._has_class = (counts > 0).double().to(device)
            self.weights = torch.full((len(counts),), 1 / len(counts), dtype=torch.float64, device=device)

    def order(self, generator: torch.Generator) -> Tensor:
        """(N,) images in the order in which an epoch shows them."""
        if self._kind == "group_balanced":
            return balanced_order(self._labels, self._groups, generator)
        return torch.randperm(len(self._labels), generator=generator)

    def loss(self, losses: Tensor, images: Tensor, whole: int) -> Tensor:
        """What some images, or all, add to the loss of their batch; group DRO moves its weights first.

        Args:
            losses: (n,) of each image, its class weight included.
            images: (n,) which of the N they are, on the CPU.
            whole: how many images the batch has, in all processes.
        """
        if self._kind in {"none", "group_balanced"}:
            return losses.sum() / whole
        device = losses.device
        weighted = losses * self._images[images.to(device)]
        if self.weights is None:
            return weighted.sum() / whole
        groups, labels = self._groups[images].to(device), self._labels[images].to(device)
        members = all_sum(torch.bincount(groups, minlength=len(self.weights)))
        seen = all_sum(torch.zeros_like(self.weights).index_add_(0, groups, weighted.detach().double()))
        # a group that the batch lacks has no loss, and its weight stays but for the scale
        self.weights *= torch.exp(self._step * seen / members.clamp(min=1))
        self.weights /= self.weights.sum()
        # what weighs more in a class that some group lacks would weigh less in the others
        by_class = 1 / (self.weights @ self._has_class).clamp(min=1e-12)
        share = self.weights[groups] * by_class[labels] / members[groups]
        return (weighted * share.float()).sum()


def cells(labels: Tensor, groups: Tensor) -> Tensor:
    """How many images each group has of each class: (G, K) int64, of labels and groups (N,)."""
    size = int(groups.max()) + 1, int(labels.max()) + 1
    return torch.bincount(groups * size[1] + labels, minlength=size[0] * size[1]).reshape(size)


def _within_groups(counts: Tensor) -> Tensor:
    """P(class) / P(class | group) of the cells (G, K), float64; 0 where there is no image."""
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum().double()
    return torch.where(counts > 0, expected / counts, 0.0)


def independent_weights(labels: Tensor, groups: Tensor) -> Tensor:
    """Weight of each image, (N,) float32, under which class and group are independent.

    P(group) P(class) / P(group, class), scaled so that each class weighs as much as it has images, though a
    group lacks it.

    Source: Kamiran and Calders 2012.
    """
    counts = cells(labels, groups)
    weights = _within_groups(counts)
    weighs = (weights * counts).sum(0)
    return (weights * torch.where(weighs > 0, counts.sum(0) / weighs, 1.0))[groups, labels].float()


def balanced_order(labels: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) images, shuffled: of each class as many as there are, from the groups that have it alike.

    Of a class and group, all images come before one comes again.
    """
    chosen = []
    for label in torch.unique(labels):
        of_class = labels == label
        present = torch.unique(groups[of_class])
        count, others = divmod(int(of_class.sum()), len(present))
        extra = torch.randperm(len(present), generator=generator) < others
        for group, more in zip(present, extra, strict=True):
            own = torch.nonzero(of_class & (groups == group))[:, 0]
            wanted = count + int(more)
            rounds = -(-wanted // len(own))
            drawn = [own[torch.randperm(len(own), generator=generator)] for _ in range(rounds)]
            chosen += [torch.cat(drawn)[:wanted]] if drawn else []
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=generator)]
