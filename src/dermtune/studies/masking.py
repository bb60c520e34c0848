"""Is a model hard to attack, or are the attacks blunt? What must hold of attacks that work.

A network whose gradients are hidden, by rounding, saturation or chance, looks robust to attacks that follow
them. Then signs show that no honest defence leaves.

Source: Athalye et al. 2018, Obfuscated gradients give a false sense of security, section 3.1; Carlini et al.
2019, On evaluating adversarial robustness, section 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
_SLACK = 0.05  # of the images: attacks start at random


@dataclass(frozen=True)
class Check:
    """One sign of blunt attacks, looked for."""

    name: str
    """What must hold."""
    found: str
    """The numbers."""
    passed: bool


def more_is_never_less(name: str, of: str, right: Mapping[float, Bools]) -> Check:
    """The more the attacker may, the fewer images stay right.

    Args:
        name: what must hold.
        of: what there is more of, with `{}` where the amount stands.
        right: by amount, rising: is each of N images still right?
    """
    counts = {amount: int(one.sum()) for amount, one in right.items()}
    total = len(next(iter(right.values())))
    worst = max((later - earlier for earlier, later in pairwise(counts.values())), default=0)
    found = ", ".join(f"{of.format(f'{amount:g}')}: {count} of {total}" for amount, count in counts.items())
    return Check(name, f"still right with {found}", worst <= slack(total))


def weaker_does_not_win(
    name: str, words: tuple[str, str], pairs: Sequence[tuple[float, Bools, Bools]], *, unit: str
) -> Check:
    """What a weaker attack fells, the stronger one fells as well.

    Args:
        name: what must hold.
        words: what the weaker and the stronger attack are called.
        pairs: eps; is each of N images still right under the weaker, and under the stronger attack?
        unit: of eps, with `{}` where it stands.
    """
    missed = {eps: int((strong & ~weak).sum()) for eps, weak, strong in pairs}
    total = len(pairs[0][1])
    weaker, stronger = words
    found = ", ".join(f"{unit.format(f'{eps:g}')}: {count}" for eps, count in missed.items())
    left = ", ".join(str(int(strong.sum())) for _, _, strong in pairs)  # none: the sign says nothing
    text = f"images of {total} that {weaker} fells and {stronger} does not, at {found}; it leaves {left}"
    return Check(name, text, max(missed.values()) <= slack(total))


def nothing_stands(name: str, what: str, right: Bools) -> Check:
    """Where all may be changed, nothing can stay right."""
    count = int(right.sum())
    return Check(name, f"still right {what}: {count} of {len(right)}", count <= slack(len(right)))


def slack(images: int) -> int:
    """How many images may go the wrong way by the chance of where attacks start: one, or one in twenty."""
    return max(1, int(_SLACK * images))
