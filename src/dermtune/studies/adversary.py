"""Attacks on the deployable graph: the torch modules to find a gradient in, and ART's attacks on them.

What an attack gives is made into whole pixels, since the graph takes no others: what is judged could be
a file.

ART is the Adversarial Robustness Toolbox (Nicolae et al. 2018). It draws from numpy's global state, which is
set before each attack and put back after it.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dermtune.deployable import NEIGHBOR, Deployable
from dermtune.errors import ConfigError
from dermtune.tails import TrainedTails
from dermtune_bundle.graph import Graph
from dermtune_bundle.manifest import MALIGNANT, Contract, OperatingPoint

Norm: TypeAlias = Literal["linf", "l2", "patch"]
Pixels: TypeAlias = NDArray[np.uint8]
WHITE_BOX: Final[dict[Norm, tuple[str, ...]]] = {
    "linf": ("fgsm", "pgd", "apgd_ce", "apgd_dlr"),
    "l2": ("fgsm", "pgd", "apgd_ce", "apgd_dlr"),
    "patch": ("pgd",),
}
"""Attacks that know the network, cheapest first."""
NAMED: Final = "class named"
"""The decision that is no operating point; none can be called so."""
GREY_LEVELS: Final = 255
_BATCH = 4  # larger ones spend their time on asking the system for memory
_LEAST_FOR_RATIO = 3  # classes; the difference of logits is divided by that of the first and the third
_STRIDE = 2.5  # steps of PGD in all, in units of eps: it can cross from one side to the other
_CERTAIN = 1e-6


class Scores(nn.Module):
    """The module that the graph was exported from, up to the logarithms of its probabilities.

    Curves of isotonic calibration are left out: they are flat in places, where no gradient would be left. The
    graph, which judges, has them.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, trained: TrainedTails, contract: Contract, *, test_views: int | None = None) -> None:
        super().__init__()
        self.module = Deployable(
            trained.trunk,
            trained.tails,
            input_size=contract.input.size,
            test_views=test_views or contract.lineage["calibrate"]["test_views"],
            references=NEIGHBOR,
        )
        self.register_buffer("scale", torch.tensor(contract.calibration.logit_scale))
        self.register_buffer("shift", torch.tensor(contract.calibration.logit_shift))
        self.eval().requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """From pixels (N, S, S, 3), floats from 0 to 255, to log-probabilities (N, K)."""
        logits = self.module(pixels)[1]
        found: Tensor = (logits * self.scale + self.shift).log_softmax(1)
        return found


@dataclass(frozen=True)
class Decision:
    """What the model does right, and an attack is to undo."""

    name: str
    """NAMED: the right class is; or an operating point's name: a positive image reaches its threshold."""
    scores: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """From probabilities (N, K) to what the decision is the largest of, (N, J)."""
    right: NDArray[np.int64]
    """(N,) which of them is right for each attacked image; -1: nothing is asked of it."""

    def holds(self, probabilities: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Is the decision right, for probabilities (M, K) of images `rows` (M,)?"""
        found: NDArray[np.bool_] = self.scores(probabilities).argmax(1) == self.right[rows]
        return found


def naming(contract: Contract, labels: NDArray[np.int64]) -> Decision:
    """The right class is named, for images of classes `labels` (N,)."""
    weights = np.log([known.decision_weight for known in contract.classes])
    return Decision(NAMED, lambda probabilities: _log(probabilities) + weights, labels)


def flagging(contract: Contract, labels: NDArray[np.int64], point: OperatingPoint) -> Decision:
    """A positive image reaches the operating point's threshold; nothing is asked of the others."""
    columns = target_columns(contract, point)
    threshold = np.clip(point.threshold, _CERTAIN, 1 - _CERTAIN)

    def scores(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        flagged = _log(probabilities[:, columns].sum(1)) - np.log(threshold)
        return np.stack([flagged, np.zeros(len(flagged))], axis=1)  # what ties is flagged, as by the bundle

    return Decision(point.name, scores, np.where(np.isin(labels, columns), 0, -1))


def target_columns(contract: Contract, point: OperatingPoint) -> list[int]:
    """The classes that an operating point is to find."""
    if point.target == MALIGNANT:
        return [index for index, known in enumerate(contract.classes) if known.malignant]
    return [index for index, known in enumerate(contract.classes) if known.name == point.target]


class Naming(nn.Module):
    """Scores (N, K) whose largest is the class named."""

    weights: Tensor

    def __init__(self, scores: nn.Module, contract: Contract) -> None:
        super().__init__()
        self.scores = scores
        self.register_buffer("weights", torch.tensor([one.decision_weight for one in contract.classes]).log())

    def forward(self, pixels: Tensor) -> Tensor:
        """Of pixels (N, S, S, 3)."""
        found: Tensor = self.scores(pixels) + self.weights
        return found


class Flagging(nn.Module):
    """Scores (N, 2): how far the log-odds of a target are above its threshold, and 0."""

    def __init__(self, scores: nn.Module, contract: Contract, point: OperatingPoint) -> None:
        super().__init__()
        self.scores = scores
        self.columns = target_columns(contract, point)
        self.others = [column for column in range(len(contract.classes)) if column not in self.columns]
        threshold = min(max(point.threshold, _CERTAIN), 1 - _CERTAIN)
        self.least = float(np.log(threshold) - np.log1p(-threshold))

    def forward(self, pixels: Tensor) -> Tensor:
        """Of pixels (N, S, S, 3)."""
        logs = self.scores(pixels)
        odds = logs[:, self.columns].logsumexp(1) - logs[:, self.others].logsumexp(1) - self.least
        return torch.stack([odds, torch.zeros_like(odds)], dim=1)


def load_art() -> None:
    """Import ART, which writes a folder into the home folder when it is: into one that is thrown away.

    Raises:
        ConfigError: it is not installed.
    """
    if "art" in sys.modules:
        return
    try:
        with TemporaryDirectory() as folder, _home_in(folder):
            import art  # noqa: F401, PLC0415 (the extra [study])
    except ImportError as error:
        raise ConfigError(
            "attacks need the Adversarial Robustness Toolbox: pip install 'dermtune[study]'"
        ) from error


def attacks_on(norm: Norm, *, classes: int) -> list[str]:
    """Of WHITE_BOX, those that a decision among so many classes can be attacked by."""
    return [name for name in WHITE_BOX[norm] if name != "apgd_dlr" or classes >= _LEAST_FOR_RATIO]


def attack(
    name: str,
    module: nn.Module,
    images: Pixels,
    right: NDArray[np.int64],
    *,
    norm: Norm,
    eps: float,
    classes: int,
    steps: int,
    seed: int,
) -> Pixels:
    """Images changed by an attack that knows the network.

    Args:
        name: of WHITE_BOX.
        module: from pixels (M, S, S, 3) to scores (M, J), of which the right one is to lose.
        images: uint8 (M, S, S, 3).
        right: (M,) the right decision, 0 to J - 1.
        norm: in which the change is small; or `patch`: a square in the upper left corner.
        eps: how large it may be: in grey levels of 255 for `linf`; in the Euclidean norm of pixels scaled to
            0 to 1 for `l2`; the share of the side that the square takes for `patch`.
        classes: J.
        steps: of an attack that takes many.
        seed: draws where it starts.

    Source: fgsm: Goodfellow et al. 2015; pgd: Madry et al. 2018; apgd with cross-entropy and with the
    difference of logits ratio: Croce and Hein 2020; patch: Brown et al. 2017, but one for each image.
    """
    load_art()
    from art.attacks import evasion  # noqa: PLC0415 (the extra [study])
    from art.estimators.classification import PyTorchClassifier  # noqa: PLC0415

    side = images.shape[1]
    estimator = PyTorchClassifier(
        module,
        loss=nn.CrossEntropyLoss(),
        input_shape=(side, side, 3),
        nb_classes=classes,
        channels_first=False,
        clip_values=(0, GREY_LEVELS),
        device_type="cpu",
    )
    size = {"linf": eps, "l2": eps * GREY_LEVELS, "patch": float(GREY_LEVELS)}[norm]
    shared: dict[str, Any] = {"norm": 2 if norm == "l2" else np.inf, "eps": size, "batch_size": _BATCH}
    mask: dict[str, Any] = {}
    if norm == "patch":
        mask = {"mask": np.broadcast_to(_corner(side, eps), images.shape).astype(np.float32)}
    if name == "fgsm":
        chosen = evasion.FastGradientMethod(estimator, **shared)
    elif name == "pgd":
        # of a small Euclidean ball, rounding to whole pixels would leave nothing of a random start
        starts = {"num_random_init": int(norm != "l2"), "max_iter": steps, "eps_step": _STRIDE * size / steps}
        chosen = evasion.ProjectedGradientDescentPyTorch(estimator, verbose=False, **shared, **starts)
    else:
        loss = {"apgd_ce": "cross_entropy", "apgd_dlr": "difference_logits_ratio"}[name]
        starts = {"nb_random_init": 1, "max_iter": steps, "eps_step": 2 * size}
        chosen = evasion.AutoProjectedGradientDescent(
            estimator, loss_type=loss, verbose=False, **shared, **starts
        )
    with _seeded(seed):
        changed = chosen.generate(x=images.astype(np.float32), y=np.eye(classes)[right], **mask)
    return whole_pixels(changed, images, norm=norm, eps=eps)


def square_attack(
    ask: Callable[[Pixels], NDArray[np.float64]],
    images: Pixels,
    right: NDArray[np.int64],
    *,
    eps: float,
    classes: int,
    queries: int,
    seed: int,
) -> Pixels:
    """Images changed by an attack that knows nothing, and only asks the graph: Square, in L-inf.

    Args:
        ask: from uint8 (M, S, S, 3) to scores (M, J), of which the largest is the decision.
        images: uint8 (M, S, S, 3).
        right: (M,) the right decision.
        eps: the largest change, in whole grey levels.
        classes: J.
        queries: how often it may ask about each image.
        seed: draws the squares.

    Source: Andriushchenko et al. 2020, Square Attack.
    """
    load_art()
    from art.attacks.evasion import SquareAttack  # noqa: PLC0415 (the extra [study])
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork  # noqa: PLC0415

    known: dict[bytes, NDArray[np.float64]] = {}

    def remembered(pixels: NDArray[np.float32]) -> NDArray[np.float64]:
        """ART asks three times about what it asked before."""
        whole = np.rint(pixels).astype(np.uint8)
        keys = [hashlib.sha256(one.tobytes()).digest() for one in whole]
        new = {key: row for row, key in enumerate(keys) if key not in known}
        if new:
            known.update(zip(new, ask(whole[[*new.values()]]), strict=True))
        return np.stack([known[key] for key in keys])

    estimator = BlackBoxClassifierNeuralNetwork(
        remembered, images.shape[1:], classes, channels_first=False, clip_values=(0, GREY_LEVELS)
    )
    # one is for the stripes that it starts from
    attack = SquareAttack(estimator, norm=np.inf, eps=eps, max_iter=queries - 1, verbose=False)
    with _seeded(seed):
        changed = attack.generate(x=images.astype(np.float32), y=np.eye(classes)[right])
    return whole_pixels(changed, images, norm="linf", eps=eps)


def random_patch(images: Pixels, *, eps: float, seed: int) -> Pixels:
    """The same square as a patch, of random pixels: what hiding the corner does, without an attack."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, GREY_LEVELS + 1, images.shape, dtype=np.uint8)
    changed: Pixels = np.where(_corner(images.shape[1], eps) > 0, noise, images)
    return changed


def whole_pixels(changed: NDArray[np.floating], images: Pixels, *, norm: Norm, eps: float) -> Pixels:
    """The nearest whole pixels (M, S, S, 3) that are still within eps of the images.

    In L-inf, with a whole eps, rounding does not leave the ball. Of a Euclidean ball that it would leave, the
    smallest changes are taken back.
    """
    wanted = changed.astype(np.float64) - images
    if norm == "linf":
        wanted = wanted.clip(-eps, eps)
    steps = np.rint(wanted)
    if norm == "l2":
        flat, sizes = steps.reshape(len(steps), -1), np.abs(wanted).reshape(len(steps), -1)
        largest_first = np.argsort(-sizes, axis=1, kind="stable")
        ordered = np.take_along_axis(flat, largest_first, axis=1)
        ordered[np.cumsum(ordered**2, axis=1) > (eps * GREY_LEVELS) ** 2] = 0
        np.put_along_axis(flat, largest_first, ordered, axis=1)
        steps = flat.reshape(wanted.shape)
    whole: Pixels = (images + steps).clip(0, GREY_LEVELS).astype(np.uint8)
    return whole


def judge(graph: Graph, images: Pixels) -> NDArray[np.float64]:
    """Probabilities (M, K) that the graph gives whole pixels (M, S, S, 3); one image a core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.array([found.probabilities for found in pool.map(graph.run, images)], np.float64)


def _corner(side: int, share: float) -> NDArray[np.float32]:
    """(S, S, 1): 1 in a square in the upper left corner, 0 elsewhere."""
    mask = np.zeros((side, side, 1), np.float32)
    length = max(1, round(share * side))
    mask[:length, :length] = 1
    return mask


def _log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return logs


@contextmanager
def _home_in(folder: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("HOME", "USERPROFILE")}
    os.environ.update(dict.fromkeys(before, folder))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """ART draws from numpy's global state, which is as it was afterwards."""
    state = np.random.get_state()  # noqa: NPY002 (as above)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def seed_of(seed: int, parts: Sequence[object]) -> int:
    """A seed of its own for each attack, so that one that was skipped changes no other."""
    text = " ".join(map(str, parts)).encode()
    return int(np.random.SeedSequence([seed, *text]).generate_state(1)[0])
