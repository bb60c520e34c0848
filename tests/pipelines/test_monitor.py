import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipelines.monitor import monitor
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State

from dermtune.drift import REFERENCE, read_recent, write_reference
from dermtune.registry import Registry
from dermtune.scoring import score_inbox
from dermtune_bundle import Bundle

pytestmark = pytest.mark.usefixtures("server")
ROOT = Path(__file__).parents[2]


def score_images(bundle: Path, out: Path, *, mean: tuple[int, int, int], seed: int) -> None:
    inbox = out.with_suffix("")
    inbox.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(60):
        pixels = rng.normal(rng.normal(mean, 15), 10, (40, 56, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(inbox / f"patient{number}.png")
    score_inbox(bundle, str(inbox), out)


@pytest.fixture
def registry(tiny_bundle: Path, tmp_path: Path) -> str:
    """Its champion has a reference of reddish images."""
    score_images(tiny_bundle, tmp_path / "before.db", mean=(170, 120, 100), seed=1)
    bundles = Registry(str(tmp_path / "registry"))
    version = Bundle.open(tiny_bundle).version
    before = read_recent(tmp_path / "before.db", version, since=datetime.now(UTC) - timedelta(days=1))
    content = write_reference(before.table.drop(columns="day"))
    bundles.promote(bundles.add(tiny_bundle, beside={REFERENCE: content}), over=None, reason="first")
    return str(tmp_path / "registry")


async def _artifacts(state: State[None]) -> list[str]:
    flow_run = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    async with get_client() as client:
        found = await client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=flow_run))
    return [str(one.data) for one in found]


def test_usual_images_pass_and_others_end_as_drifted_with_a_report(
    registry: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    score_images(tiny_bundle, tmp_path / "usual.db", mean=(170, 120, 100), seed=2)
    score_images(tiny_bundle, tmp_path / "dark.db", mean=(60, 80, 100), seed=3)

    usual = monitor(registry, tmp_path / "usual.db", tmp_path / "usual.html", ROOT, return_state=True)
    dark = monitor(registry, tmp_path / "dark.db", tmp_path / "dark.html", ROOT, return_state=True)

    assert (usual.type, usual.name) == ("COMPLETED", "Completed")
    assert usual.message == "no drift that matters: 60 images answered, 0 failed in 7 days"
    assert (dark.type, dark.name) == ("COMPLETED", "Drifted")
    assert "brightness" in str(dark.message)
    assert "\n" not in str(dark.message)
    page = (tmp_path / "dark.html").read_text()
    (artifact,) = asyncio.run(_artifacts(dark))
    assert "| inputs | brightness | median " in artifact
    assert f"Report: `{tmp_path / 'dark.html'}`" in artifact
    assert not any("patient" in text for text in (artifact, str(dark.message), page.replace("patients", "")))


def test_what_is_missing_is_said_in_one_line(registry: str, tiny_bundle: Path, tmp_path: Path) -> None:
    scores, out = tmp_path / "before.db", tmp_path / "monitor.html"
    empty = str(tmp_path / "empty")
    without = Registry(str(tmp_path / "without"))
    without.promote(without.add(tiny_bundle), over=None, reason="first")
    for arguments, words in (
        ((empty, scores, out, ROOT), f"{empty}: has no champion"),
        ((str(tmp_path / "without"), scores, out, ROOT), "keeps no reference; `dermtune registry promote"),
        ((registry, tmp_path / "absent.db", out, ROOT), "absent.db: no such file"),
        ((registry, scores, out, tmp_path / "nowhere"), "params.yaml: No such file"),
    ):
        state = monitor(*arguments, return_state=True)
        assert state.is_failed()
        assert words in str(state.message)
        assert "\n" not in str(state.message)
    assert not out.exists()
