"""Real processes of torchrun, on CPUs: they learn what one process learns."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from dermtune.backbone import Tail, load_backbone
from dermtune.checkpoint import Resume
from dermtune.distributed import (
    all_sum,
    interleave,
    is_first,
    own_share,
    process_group,
    processes,
    require_same,
)
from dermtune.errors import ConfigError, DataError
from dermtune.params import Params
from dermtune.recipe import FinetuneConfig
from dermtune.training import Examples, train_tail

CLASSES, COUNT = 3, 61  # neither batches nor the processes' shares are alike
CASES = ("none", "group_dro", "plain")


class CutOffError(Exception):
    pass


def learn(params: Params, folder: Path, case: str, *, until: int = 99) -> tuple[Tail, list[float]]:
    """Train a small tail of all that processes must share; `until` is the epoch in which it is cut off."""
    torch.manual_seed(1)
    norm: list[nn.Module] = [BatchNormAct2d(8), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    # a bias before a batch norm has no gradient but rounding, which AdamW would make into steps
    units = [
        nn.Sequential(nn.Conv2d(4, 8, 3, bias=case == "plain"), *(norm if case != "plain" else [])),
        nn.Conv2d(8, 8, 1),
    ]
    rng = np.random.default_rng(1)
    labels = rng.integers(CLASSES, size=COUNT)
    bright = np.eye(4)[labels][:, :, None, None]
    views = [(rng.normal(0, 1, (COUNT, 4, 7, 7)) + bright).astype(np.float16) for _ in range(2)]
    mitigation = "none" if case == "plain" else case
    values = {
        "epochs": 4,
        "batch_size": 16,
        "patience": 4,
        "mitigation": mitigation,
        "device": "cpu",
        "lr": 0.01,
    }
    config = FinetuneConfig.model_validate(params.finetune.model_dump() | values)
    groups = torch.arange(COUNT) % 2
    train = Examples(views, torch.from_numpy(labels), groups=groups)
    val = Examples(views[:1], torch.from_numpy(labels))

    def cut_off(record: Any) -> None:  # noqa: ANN401
        if record.epoch == until:
            raise CutOffError

    resume = Resume(folder / f"{case}.safetensors", case)
    tail = Tail(units, 8, CLASSES, dropout=0.3, seed=1)
    tail, history = train_tail(
        tail, train, val, config, seed=1, device="cpu", resume=resume, on_epoch=cut_off, keep="last"
    )
    return tail, [record.train_loss for record in history]


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=2e-3, atol=2e-4, msg=name)


def torchrun(*command: str | Path, processes: int = 2) -> str:
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    ran = subprocess.run(
        [sys.executable, *arguments, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Warning" not in ran.stderr
    return ran.stdout


def test_two_processes_reach_the_weights_of_one_and_each_goes_on_where_the_other_stopped(
    params: Params, tmp_path: Path
) -> None:
    alone, pair = tmp_path / "alone", tmp_path / "pair"
    whole = {case: learn(params, alone, case) for case in CASES}
    (tmp_path / "params.json").write_text(params.model_dump_json())
    with pytest.raises(CutOffError):  # one process begins, two go on
        learn(params, pair / "goes-on", "none", until=1)
    torchrun(__file__, tmp_path / "params.json", pair)
    for case, (tail, losses) in whole.items():
        close(load_file(pair / f"{case}-tail.safetensors"), tail.state_dict())
        found = np.loadtxt(pair / f"{case}-losses.txt")
        assert found == pytest.approx(losses, rel=1e-4)
    close(load_file(pair / "goes-on-tail.safetensors"), whole["none"][0].state_dict())
    tail, losses = learn(params, pair / "cut", "none")  # two processes began, one goes on
    close(tail.state_dict(), whole["none"][0].state_dict())
    assert losses == pytest.approx(whole["none"][1], rel=1e-4)


def test_the_stage_under_torchrun_writes_once_what_one_process_writes(
    params: Params, ingested: Path, embedded: Path, finetuned: Path, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text(params.model_dump_json())  # JSON is YAML
    command = Path(sys.executable).with_name("dermtune")
    folders = ("--images", ingested, "--activations", embedded, "--out", tmp_path / "out")
    files = (
        "--params",
        tmp_path / "params.yaml",
        "--checkpoint",
        tmp_path / "checkpoints/finetune.safetensors",
    )
    said = torchrun("--no-python", command, "finetune", *files, *folders)
    assert said.count("epoch 1/2") == 1
    one, two = (load_file(folder / "tails.safetensors") for folder in (finetuned, tmp_path / "out"))
    start = nn.ModuleList(
        [load_backbone(params.backbone).tail(7, dropout=0.0, seed=params.seed)]
    ).state_dict()
    moved = {name: value - one[name] for name, value in start.items() if value.is_floating_point()}
    apart = sum(float(((two[name] - one[name]) ** 2).sum()) for name in moved) ** 0.5
    # a gradient near zero is made into a step by AdamW, whichever sign rounding gives it
    assert apart < 0.05 * sum(float((value**2).sum()) for value in moved.values()) ** 0.5
    curves = [pd.read_csv(folder / "history.csv") for folder in (finetuned, tmp_path / "out")]
    pd.testing.assert_frame_equal(*curves, rtol=0.02)
    assert [*(tmp_path / "checkpoints").iterdir()] == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        path.name for path in finetuned.iterdir()
    )


def test_alone_everything_is_ones_own() -> None:
    with process_group("cpu"):
        assert (processes(), is_first()) == (1, True)
        share = own_share(torch.arange(5))
        assert (share.images.tolist(), share.first, share.whole) == ([0, 1, 2, 3, 4], 0, 5)
        assert all_sum(torch.tensor(3)) == 3
        assert interleave(["a", "b"], 2) == ["a", "b"]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "64", "LOCAL_WORLD_SIZE": "65"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="65 processes on a machine with"), process_group("cuda"):
        pass


def main() -> None:
    """One of torchrun's processes."""
    params, out = Params.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    with process_group("cpu"):
        assert processes() == 2
        assert [*interleave([f"{torch.distributed.get_rank()}"] * 2, 4)] == ["0", "1", "0", "1"]
        require_same(1, "not the same")
        with pytest.raises(DataError, match="finetune: not the same"):
            require_same(torch.distributed.get_rank(), "not the same")
        share = own_share(torch.arange(5))
        assert (len(share.images), share.first) == ((3, 0) if is_first() else (2, 3))
        trained = {case: learn(params, out, case) for case in CASES}
        trained["goes-on"] = learn(params, out / "goes-on", "none")
        with suppress(CutOffError):
            learn(params, out / "cut", "none", until=2)
        if is_first():
            from safetensors.torch import save_file  # noqa: PLC0415

            for case, (tail, losses) in trained.items():
                save_file(tail.state_dict(), out / f"{case}-tail.safetensors")
                np.savetxt(out / f"{case}-losses.txt", losses)


if __name__ == "__main__":
    main()
