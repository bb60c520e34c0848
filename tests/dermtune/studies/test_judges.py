from pathlib import Path

import numpy as np
import pytest
import torch

from dermtune.backbone import load_backbone
from dermtune.checkpoint import Resume
from dermtune.params import Params
from dermtune.studies import judges as module
from dermtune.studies.images import read_images
from dermtune.studies.judges import Judges, batched
from dermtune.tails import read_tails


def test_images_come_in_batches_none_is_lost() -> None:
    images = [np.full((2, 2, 3), value, np.uint8) for value in range(70)]
    found = [*batched(images)]
    assert [len(one) for one in found] == [32, 32, 6]
    np.testing.assert_array_equal(np.concatenate(found), np.stack(images))
    assert [*batched([])] == []


def test_all_judges_see_the_same_and_are_trained_once(
    params: Params, ingested: Path, finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = read_tails(finetuned, backbone=params.backbone)
    resume = Resume(tmp_path / "robustness.safetensors", "this")
    judges = Judges(trained, params, ingested, resume)
    pixels = read_images(ingested, "val", params.backbone.input_size).pixels
    logits = judges.ask(batched(pixels), "test", len(pixels))
    assert logits.shape == (len(pixels), 3, len(trained.classes))

    # another run finds the trainings done
    monkeypatch.setattr(module, "progress", lambda items, *_, **__: items)
    plain, probe = Judges(trained, params, ingested, resume)._learn()
    tails = [*trained.tails, plain, probe]
    with torch.inference_mode():
        activations = trained.trunk(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
        expected = torch.stack([tail(activations) for tail in tails], dim=1).numpy()
    np.testing.assert_allclose(logits, expected, atol=2e-4)
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.01

    frozen = load_backbone(params.backbone).tail(len(trained.classes), dropout=0, seed=0).state_dict()
    kept, learned = probe.state_dict(), plain.state_dict()
    units = [name for name in frozen if name.startswith("units.")]
    assert all(torch.equal(kept[name], frozen[name]) for name in units)
    assert any(not torch.equal(learned[name], frozen[name]) for name in units)
    resume.forget()
    assert [*tmp_path.iterdir()] == []
