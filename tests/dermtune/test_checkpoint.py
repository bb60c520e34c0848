from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dermtune.backbone import Tail
from dermtune.checkpoint import Resume, State

HISTORY = [{"epoch": 0, "val_loss": 0.7}, {"epoch": 1, "val_loss": 0.1 + 0.2}]


def make_state(seed: int) -> State:
    """As after a step of the optimizer; its three tails differ."""
    torch.manual_seed(seed)
    tails = [Tail([nn.Conv2d(4, 8, 3)], 8, 3, dropout=0.0, seed=seed + index) for index in range(3)]
    optimizer = torch.optim.AdamW(tails[0].parameters(), fused=True)
    tails[0](torch.randn(2, 4, 5, 5)).sum().backward()
    optimizer.step()
    return State(*tails, optimizer)


def numbers(state: State) -> list[torch.Tensor]:
    """All that is kept, in one order."""
    tails = (tail.state_dict() for tail in (state.tail, state.averaged, state.best))
    moments = state.optimizer.state_dict()["state"]
    parts = [*tails, *(moments[index] for index in sorted(moments))]
    return [part[name] for part in parts for name in sorted(part)]


def same(one: State, other: State) -> bool:
    return all(torch.equal(a, b) for a, b in zip(numbers(one), numbers(other), strict=True))


def test_what_is_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    resume, kept, fresh = Resume(tmp_path / "one.safetensors", "print"), make_state(1), make_state(7)
    assert not same(kept, fresh)
    kept.save(resume, HISTORY)
    assert fresh.load(resume) == HISTORY
    assert same(kept, fresh)


def test_the_weights_of_groups_are_kept_as_well(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "one.safetensors", "print")
    kept, fresh = (
        replace(make_state(1), group_weights=torch.tensor(values, dtype=torch.float64))
        for values in ([0.1 + 0.2, 0.7], [0.5, 0.5])
    )
    kept.save(resume, HISTORY)
    weights = fresh.group_weights
    fresh.load(resume)
    assert weights is not None
    assert weights.tolist() == [0.1 + 0.2, 0.7], "in place: the training holds it"


@pytest.mark.parametrize("content", [None, b"no tensors", "another"])
def test_nothing_else_is_loaded(
    tmp_path: Path, content: bytes | str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dermtune")
    path = tmp_path / "one.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        make_state(1).save(Resume(path, content), HISTORY)
    state = make_state(7)
    assert state.load(Resume(path, "print")) == []
    assert same(state, make_state(7))
    assert ("is not resumed" in caplog.text) is path.exists()


def test_checkpoints_of_several_trainings_are_forgotten_together(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").touch()
    resume = Resume(tmp_path / "finetune.safetensors", "one")
    for part in ("tail-0", "fold-1"):
        resume.of(part).checkpoint.touch()
    (tmp_path / ".finetune-tail-0-abc123.safetensors").touch()  # what a kill while it was written left
    assert {path.name for path in tmp_path.iterdir()} == {
        "finetune-fold-1.safetensors",
        "finetune-tail-0.safetensors",
        ".finetune-tail-0-abc123.safetensors",
        "other.safetensors",
    }
    resume.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]
