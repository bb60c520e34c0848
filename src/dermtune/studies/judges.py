"""Three classifiers behind one trunk, which runs once for all: what robustness is compared between.

The shipped tails; a tail of the same recipe, from the same first weights, that saw each training image as it
is and never augmented; and a linear probe: one linear layer on what the network saw before it met a lesion.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermtune.backbone import Tail, load_backbone
from dermtune.checkpoint import Resume
from dermtune.progress import progress
from dermtune.shards import PackedImages, places
from dermtune.table import read_table
from dermtune.tails import TrainedTails
from dermtune.training import Activations, Examples, train_tail
from dermtune.trunk import Runner, make_runner, resolve_device
from dermtune_bundle.decode import resize

if TYPE_CHECKING:
    from dermtune.params import Params

Pixels = NDArray[np.uint8]
TITLES: Final = {"shipped": "dermtune", "plain": "without augmentation", "probe": "linear probe"}
"""Of the classifiers, by name."""
BATCH: Final = 32
"""Images that go through the network at once."""
_SPLITS: Final[tuple[Literal["train", "val"], ...]] = ("train", "val")


class Judges:
    """The three classifiers behind one trunk, trained when they are first asked."""

    def __init__(self, trained: TrainedTails, params: "Params", images: Path, resume: Resume) -> None:
        self._trained = trained
        self._params = params
        self._images = images
        self._resume = resume

    def ask(self, batches: Iterable[Pixels], description: str, total: int) -> NDArray[np.float64]:
        """What all heads say: the T shipped tails, the one without augmentation, the probe.

        Args:
            batches: images, uint8 (n, S, S, 3) each.
            description: of the progress bar.
            total: how many images there are.

        Returns:
            Logits (N, T + 2, K).
        """
        seen = self._run(batches)
        return np.concatenate([*progress(seen, description, total, step=BATCH)]).astype(np.float64)

    @cached_property
    def _run(self) -> Runner:
        trunk, size = self._trained.trunk, self._params.backbone.input_size
        heads = _Heads([*self._trained.tails, *self._learn()])
        return make_runner(trunk.followed_by([heads]), input_size=size, dtype="float32", device="cpu")

    def _learn(self) -> tuple[Tail, Tail]:
        """The recipe on images as they are, and a linear layer on what the frozen network sees of them."""
        params, classes = self._params, len(self._trained.classes)
        recipe, seed = params.finetune, params.seed
        network = load_backbone(params.backbone)
        size = params.backbone.input_size
        run = make_runner(network.trunk, input_size=size, dtype="float16", device="cpu")
        train, val = (self._unvaried(run, split) for split in _SPLITS)
        plain = self._train(network.tail(classes, dropout=recipe.dropout, seed=seed), train, val, "plain")
        frozen = nn.Sequential(*network.tail_units).eval()
        pooled = [Examples([_pooled(frozen, one.views[0])], one.labels) for one in (train, val)]
        head = Tail([], network.features, classes, dropout=recipe.dropout, seed=seed)
        probe = self._train(head, pooled[0], pooled[1], "probe")
        whole = Tail(network.tail_units, network.features, classes, dropout=0.0, seed=seed).eval()
        whole.classifier.load_state_dict(probe.classifier.state_dict())
        return plain, whole

    def _train(self, tail: Tail, train: Examples, val: Examples, name: str) -> Tail:
        recipe = self._params.finetune.model_copy(update={"mitigation": "none"})  # it is about people
        device = resolve_device(recipe.device, key="finetune.device")
        trained, _ = train_tail(
            tail,
            train,
            val,
            recipe,
            seed=self._params.seed,
            device=device,
            resume=self._resume.of(name),
            description=f"{TITLES[name]}, ",
        )
        return trained.to("cpu")

    def _unvaried(self, run: Runner, split: Literal["train", "val"]) -> Examples:
        """What the trunk makes of the images of a split as they are."""
        table = read_table(self._images / "images.parquet", split=split)
        size, packed = self._params.backbone.input_size, PackedImages(self._images)
        pixels = (resize(packed.decode(place), size) for place in places(table))
        seen = progress(run(batched(pixels)), f"{split} images", len(table), step=BATCH)
        labels = [self._trained.classes.index(label) for label in table["label"]]
        return Examples([np.concatenate([*seen])], torch.tensor(labels))


class _Heads(nn.Module):
    """Tails beside each other on the same activations: logits (N, heads, K)."""

    def __init__(self, tails: Sequence[Tail]) -> None:
        super().__init__()
        self.tails = nn.ModuleList(tails)

    def forward(self, activations: Tensor) -> Tensor:
        return torch.stack([tail(activations) for tail in self.tails], dim=1)


def _pooled(units: nn.Module, activations: Activations | Tensor) -> Activations:
    """The last features of some activations, means over places, (N, F, 1, 1)."""
    with torch.inference_mode():
        parts = [
            units(torch.as_tensor(activations[top : top + BATCH]).float()).mean((2, 3), keepdim=True).numpy()
            for top in range(0, len(activations), BATCH)
        ]
    return np.concatenate(parts)


def batched(pixels: Iterable[Pixels]) -> Iterator[Pixels]:
    """Images of one size (S, S, 3) as batches (n, S, S, 3)."""
    batch = []
    for one in pixels:
        batch.append(one)
        if len(batch) == BATCH:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
