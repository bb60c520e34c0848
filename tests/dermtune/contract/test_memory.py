"""Memory does not grow with the number of images."""

import subprocess
import sys
from pathlib import Path

import numpy as np

EMBED = """
import json, resource, sys
from pathlib import Path
from dermtune.config import BackboneConfig
from dermtune.stages.embed import EmbedConfig, embed
backbone = BackboneConfig(name="tf_efficientnet_lite0", weights="package", cut=1, input_size=64)
config = EmbedConfig(device="cpu", batch_size=32, dtype="float16")
embed(config, backbone=backbone, views=Path(sys.argv[1]), out=Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory(folder: Path, images: int) -> int:
    """Of a process that embeds so many images, in KiB."""
    views = folder / f"views-{images}"
    views.mkdir()
    (views / "views.json").write_text("{}")
    for name, count in (("train-00.npy", images), ("val.npy", 10)):
        # a file with a hole: no disk is written for the pixels, all of which are zero
        np.lib.format.open_memmap(views / name, mode="w+", dtype=np.uint8, shape=(count, 64, 64, 3))
    command = [sys.executable, "-c", EMBED, str(views), str(folder / "out")]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_embedding_twenty_times_as_many_images_takes_no_more_memory(tmp_path: Path) -> None:
    few, many = peak_memory(tmp_path, 500), peak_memory(tmp_path, 10_000)
    assert many < 1.15 * few
