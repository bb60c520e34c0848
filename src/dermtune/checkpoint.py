"""Keep the state of a training, so that an interrupted one ends as one that was not."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dermtune.backbone import Tail
from dermtune_bundle.files import atomic_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resume:
    """Where a training keeps its state, so that an interrupted one goes on."""

    checkpoint: Path
    fingerprint: str
    """Of everything that decides the result; a checkpoint of another one is not resumed."""

    def of(self, part: str) -> "Resume":
        """That of one of several trainings, in a file of its own."""
        return replace(self, checkpoint=self.checkpoint.with_stem(f"{self.checkpoint.stem}-{part}"))

    def forget(self) -> None:
        """Remove the checkpoints of all the trainings, which are done, and what a kill left half-written."""
        for dot in ("", "."):
            for path in self.checkpoint.parent.glob(f"{dot}{self.checkpoint.stem}-*{self.checkpoint.suffix}"):
                path.unlink()


@dataclass(frozen=True)
class State:
    """Of a training, between two epochs. A checkpoint keeps it as safetensors: nothing is pickled."""

    tail: Tail
    averaged: Tail
    best: Tail
    optimizer: torch.optim.Optimizer
    group_weights: Tensor | None = None
    """(G,) of group DRO."""

    def save(self, resume: Resume, history: list[dict[str, Any]]) -> None:
        """Write it, and the learning curves so far, to the checkpoint."""
        tensors = {  # safetensors keeps no memory format
            f"{part}.{name}": value.contiguous().clone()
            for part, module in self._modules().items()
            for name, value in module.state_dict().items()
        }
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in values.items()}
        if self.group_weights is not None:
            tensors["groups.weights"] = self.group_weights
        facts = {
            "fingerprint": resume.fingerprint,
            "history": json.dumps(history),
        }
        with atomic_path(resume.checkpoint) as temporary:
            save_file(tensors, temporary, metadata=facts)

    def load(self, resume: Resume) -> list[dict[str, Any]]:
        """Load a checkpoint of the same run where there is one; gives its learning curves so far."""
        path = resume.checkpoint
        if not path.is_file():
            return []
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        except (OSError, SafetensorError) as error:
            log.warning("warning: %s cannot be read and is not resumed: %s", path, error)
            return []
        if facts.get("fingerprint") != resume.fingerprint:
            log.info("%s is of another run and is not resumed", path)
            return []
        for part, module in self._modules().items():
            module.load_state_dict({name: tensors[f"{part}.{name}"] for name in module.state_dict()})
        if self.group_weights is not None:
            self.group_weights.copy_(tensors["groups.weights"])
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                # laid out as its parameter is: the fused optimizer goes through memory, not through indices
                laid_out = value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value  # noqa: PLR2004
                kept.setdefault(int(index), {})[key] = laid_out
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        history: list[dict[str, Any]] = json.loads(facts["history"])
        log.info("resumed after epoch %d", len(history))
        return history

    def _modules(self) -> dict[str, Tail]:
        return {"tail": self.tail, "averaged": self.averaged, "best": self.best}
