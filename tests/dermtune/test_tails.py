import copy
from pathlib import Path

import pytest
import torch

from dermtune.backbone import load_backbone, weights_fingerprint
from dermtune.config import BackboneConfig
from dermtune.errors import DataError
from dermtune.tails import read_tails, write_tails

BACKBONE = BackboneConfig(name="tf_efficientnet_lite0", weights="package", cut=6, input_size=64)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tails")
    network = load_backbone(BACKBONE)
    lineage = {
        "images": {"train": {"mel": 1, "nv": 9}, "val": {"mel": 0, "nv": 2}},
        "activations": {"weights_sha256": weights_fingerprint(network.trunk)},
        "finetune": {"ensemble": 2, "class_balance": 0.5, "decision_balance": 1},
    }
    tails = [network.tail(2, dropout=0.1, seed=seed) for seed in (1, 2)]
    write_tails(tails, lineage, folder)
    return folder


def test_tails_come_back_with_what_they_learned_from(written: Path) -> None:
    found = read_tails(written, backbone=BACKBONE)
    assert found.classes == ["mel", "nv"]
    assert found.frequencies.tolist() == [0.1, 0.9]
    assert (found.class_balance, found.decision_balance) == (0.5, 1.0)
    network = load_backbone(BACKBONE)
    for tail, seed in zip(found.tails, (1, 2), strict=True):
        assert not tail.training
        before = network.tail(2, dropout=0.0, seed=seed).state_dict()
        assert all(torch.equal(value, before[name]) for name, value in tail.state_dict().items())


def test_tails_of_another_cut_are_refused(written: Path) -> None:
    other = BACKBONE.model_copy(update={"cut": 5})
    with pytest.raises(DataError, match="behind another trunk"):
        read_tails(written, backbone=other)


def test_missing_tails_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no trained tails, or damaged ones; re-run finetune"):
        read_tails(tmp_path, backbone=copy.copy(BACKBONE))
