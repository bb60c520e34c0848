"""Which attacks are tried, on which images, and what the graph says of what they give."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermtune.progress import progress
from dermtune.studies import AttacksConfig
from dermtune.studies.adversary import (
    GREY_LEVELS,
    NAMED,
    Decision,
    Norm,
    Pixels,
    attack,
    attacks_on,
    judge,
    random_patch,
    seed_of,
    square_attack,
)
from dermtune.studies.images import Images
from dermtune.studies.kept import Kept
from dermtune_bundle.graph import Graph

if TYPE_CHECKING:
    from torch import nn

Bools: TypeAlias = NDArray[np.bool_]
Rows: TypeAlias = NDArray[np.int64]
Track: TypeAlias = Literal["white", "black", "noise", "steps", "huge"]
FULL: Final = ("fgsm", "pgd")
"""Attacks that are run on all images, whatever fell before: they have curves of their own."""
HUGE: Final = 128
"""Grey levels: any image can be made a plain grey one."""
_MORE_STEPS = 3


@dataclass(frozen=True)
class Trial:
    """One attack on one decision, by a norm and a size."""

    track: Track
    """What it is for: `white` and `black` count as attacks, the others are held against them."""
    decision: str
    """That it is to undo."""
    attack: str
    norm: Norm
    eps: float
    steps: int

    @property
    def name(self) -> str:
        """Unlike any other's."""
        return " ".join(map(str, (self.track, self.decision, self.attack, self.norm, self.eps, self.steps)))


@dataclass(frozen=True)
class Outcome:
    """What the graph said of the images of a trial."""

    trial: Trial
    rows: Rows
    """(M,) which of the attacked images were tried."""
    probabilities: NDArray[np.float64]
    """(M, K)."""
    linf: NDArray[np.float64]
    """(M,) largest change, in grey levels."""
    l2: NDArray[np.float64]
    """(M,) Euclidean norm of the change, of pixels scaled to 0 to 1."""


@dataclass(frozen=True)
class Target:
    """What is attacked."""

    graph: Graph
    images: Images
    """N of them, in the size that the network sees."""
    clean: NDArray[np.float64]
    """(N, K) probabilities of the unchanged images."""
    decisions: dict[str, Decision]
    modules: "dict[str, nn.Module]"
    """Of the decisions."""
    classes: dict[str, int]
    """How many ways each decision can go."""


def measure_attacks(target: Target, config: AttacksConfig, *, seed: int, kept: Kept) -> list[Outcome]:
    """Run every attack; the graph says what came of it.

    Args:
        target: what is attacked.
        config: how far, and how often.
        seed: of all draws.
        kept: what was measured before.
    """
    outcomes: list[Outcome] = []
    trials = plan(target, config)
    for trial in progress(trials, "attacks", len(trials)):
        rows = _rows_of(trial, target, outcomes)

        def measure(trial: Trial = trial, rows: Rows = rows) -> dict[str, Any]:
            return _try(trial, rows, target, config, seed=seed)

        found = kept.get(trial.name, measure)
        probabilities = np.array(found["probabilities"], np.float64).reshape(len(rows), target.clean.shape[1])
        outcomes.append(Outcome(trial, rows, probabilities, np.array(found["linf"]), np.array(found["l2"])))
    return outcomes


def plan(target: Target, config: AttacksConfig) -> list[Trial]:
    """All trials, in the order in which they spare each other work."""
    sizes: dict[Norm, Sequence[float]] = {"linf": config.linf, "l2": config.l2, "patch": config.patch}
    named, *flaggings = target.decisions
    trials = []
    for norm, norm_sizes in sizes.items():
        steps = config.steps * (2 if norm == "patch" else 1)  # few pixels have far to go
        for eps in norm_sizes:
            trials += [
                Trial("white", named, name, norm, eps, steps)
                for name in attacks_on(norm, classes=target.classes[named])
            ]
            # one that goes on from what the torch module takes for a miss, too: curves move thresholds
            usual = [name for name in attacks_on(norm, classes=2) if name != "fgsm"]
            trials += [Trial("white", name, own, norm, eps, steps) for name in flaggings for own in usual]
            if norm == "linf":
                trials.append(Trial("black", named, "square", norm, eps, config.queries))
            if norm == "patch":
                trials.append(Trial("noise", named, "noise", norm, eps, 0))
    trials += [
        Trial("steps", named, "pgd", "l2", config.l2[0], steps) for steps in (1, _MORE_STEPS * config.steps)
    ]
    return [*trials, Trial("huge", named, "pgd", "linf", HUGE, config.steps)]


def _rows_of(trial: Trial, target: Target, outcomes: Iterable[Outcome]) -> Rows:
    """Images that are worth an attack: those that are right, and that nothing smaller or cheaper felled."""
    if trial.track == "noise":  # held against attacks on any decision
        return np.arange(len(target.clean))
    decision = target.decisions[trial.decision]
    is_full = trial.track not in {"white", "black"} or (
        trial.attack in FULL and trial.norm != "patch" and trial.decision == NAMED
    )
    before = (
        []
        if is_full
        else [
            one
            for one in outcomes
            if (one.trial.track, one.trial.norm) == (trial.track, trial.norm) and one.trial.eps <= trial.eps
        ]
    )
    return np.flatnonzero(still_right(decision, target.clean, before)).astype(np.int64)


def still_right(decision: Decision, clean: NDArray[np.float64], outcomes: Iterable[Outcome]) -> Bools:
    """Which images (N,) stay right whatever was tried: an image is felled by the strongest that fells it."""
    right = decision.holds(clean, np.arange(len(clean)))
    for outcome in outcomes:
        right[outcome.rows] &= decision.holds(outcome.probabilities, outcome.rows)
    return right


def _try(trial: Trial, rows: Rows, target: Target, config: AttacksConfig, *, seed: int) -> dict[str, Any]:
    images = target.images.pixels[rows]
    if not len(images):
        return {"probabilities": [], "linf": [], "l2": []}
    changed = change(trial, images, rows, target, queries=config.queries, seed=seed)
    difference = changed.astype(np.float64) - images
    return {
        "probabilities": judge(target.graph, changed).tolist(),
        "linf": np.abs(difference).max(axis=(1, 2, 3)).tolist(),
        "l2": (np.sqrt((difference**2).sum(axis=(1, 2, 3))) / GREY_LEVELS).tolist(),
    }


def change(trial: Trial, images: Pixels, rows: Rows, target: Target, *, queries: int, seed: int) -> Pixels:
    """The images of a trial, changed."""
    decision = target.decisions[trial.decision]
    own_seed = seed_of(seed, [trial.name])
    right, classes = decision.right[rows], target.classes[trial.decision]
    if trial.attack == "noise":
        return random_patch(images, eps=trial.eps, seed=own_seed)
    if trial.attack == "square":
        return square_attack(
            lambda pixels: decision.scores(judge(target.graph, pixels)),
            images,
            right,
            eps=trial.eps,
            classes=classes,
            queries=queries,
            seed=own_seed,
        )
    return attack(
        trial.attack,
        target.modules[trial.decision],
        images,
        right,
        norm=trial.norm,
        eps=trial.eps,
        classes=classes,
        steps=trial.steps,
        seed=own_seed,
    )


def rows_to_attack(
    labels: Rows, lesions: NDArray[np.object_], most: int, *, focus: Sequence[int], seed: int
) -> Rows:
    """Rows of at most some images: half of the classes in focus, half of the others, each as even as can be.

    A lesion gives its second image only when the others of its class have given their first.

    Args:
        labels: (N,) class of each image.
        lesions: (N,) its lesion.
        most: how many at most.
        focus: classes.
        seed: draws them.
    """
    table = pd.DataFrame({"label": labels, "lesion": lesions}).sample(
        frac=1, random_state=np.random.default_rng(seed)
    )
    table["of_lesion"] = table.groupby("lesion").cumcount()
    table = table.sort_values("of_lesion", kind="stable")
    table["of_class"] = table.groupby("label").cumcount()
    table = table.sort_values("of_class", kind="stable")
    inside = table["label"].isin(focus)
    first, other = table.index[inside], table.index[~inside]
    half = max(most // 2, most - len(other))
    chosen = [*first[:half], *other[: most - min(half, len(first))]]
    return np.sort(np.array(chosen, np.int64))
