"""Is there room on the disk for what a stage will write? Asked before it starts, not found out hours later.

What a stage writes follows from its input and its choices, to the byte but for headers; files that ingest
turns into PNG, as HEIC and compressed DICOM, may grow beyond what is asked for. Tables, figures and reports
are some megabytes whatever the number of images, and lie within the margin.
"""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import DTypeLike

from dermtune.errors import DataError

if TYPE_CHECKING:
    from torch import nn

MARGIN: Final = 64 << 20
"""Bytes that are to stay free beside what is estimated."""
_BLOCK = 512  # bytes, of a tar
_SHARE = 1.01  # headers, file systems' own books
_INSTEAD: Final = {
    "ingest": "or let fewer images in",
    "augment": "make fewer views (augment.views), or smaller ones (backbone.input_size)",
    "embed": "store fewer views (augment.views), or cut elsewhere (backbone.cut; docs/scaling.md tells what"
    " each cut takes)",
    "finetune": "train fewer tails (finetune.ensemble, finetune.folds), or cut later (backbone.cut)",
    "calibrate": "or train fewer tails (finetune.ensemble)",
    "evaluate": "or write to another disk",
    "export": "or write to another disk",
}


def require_room(
    stage: Literal["ingest", "augment", "embed", "finetune", "calibrate", "evaluate", "export"],
    needed: int,
    out: Path,
) -> None:
    """Refuse to start a stage whose output the disk cannot hold.

    Results of an earlier run count as free only where the stage has removed them: ask after that. A file that
    DVC's cache holds as well, by a hard link, frees nothing, and the disk itself knows.

    Args:
        stage: its name.
        needed: bytes that it will write, files that are half written at once counted each.
        out: the folder that it writes; there need be none yet.

    Raises:
        DataError: says how much is missing.
    """
    needed = math.ceil(_SHARE * needed) + MARGIN
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DataError(
            f"{out}: {stage} needs about {_shown(needed)}, and {_shown(free)} are free on that disk:"
            f" {_shown(needed - free)} are missing; free some (`dvc gc --workspace` drops old results),"
            f" {_INSTEAD[stage]}"
        )


def packed_bytes(sizes: Iterable[int], *, beside: int) -> int:
    """What ingest writes: files in tars, and arrays beside them.

    Args:
        sizes: of each image's file, in bytes.
        beside: bytes in the arrays, of one image.
    """
    return sum(_BLOCK + -(-size // _BLOCK) * _BLOCK + beside for size in sizes)


def array_bytes(rows: int, shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """What arrays of so many rows in all take, each row of a shape."""
    return rows * math.prod(shape) * np.dtype(dtype).itemsize


def weights_bytes(network: "nn.Module") -> int:
    """What a network's weights and statistics take."""
    return sum(value.nbytes for value in network.state_dict().values())


def checkpoint_bytes(tail: "nn.Module") -> int:
    """What `checkpoint.State` takes: three networks, and AdamW's two moments of each parameter."""
    return 3 * weights_bytes(tail) + 2 * sum(one.nbytes for one in tail.parameters())


def training_bytes(tail: "nn.Module", *, tails: int, folds: int) -> int:
    """What finetune writes at most: checkpoints, kept until all are trained, and the tails.

    Args:
        tail: one of them.
        tails: of the ensemble.
        folds: of cross-validation.
    """
    writing = 1  # the checkpoint that is written before the one that it replaces goes
    return (tails + folds + writing) * checkpoint_bytes(tail) + tails * weights_bytes(tail)


def _shown(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"  # noqa: PLR2004 (0.1 GB)
