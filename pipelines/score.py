"""The `score` flow: new images of an inbox through the champion of a registry, once each."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from dermtune.engine import LOCAL, ComputeConfig
from dermtune.registry import Registry
from dermtune.scoring import Scored, score_inbox
from pipelines.retries import patient_task
from pipelines.stage import as_own


@patient_task("score")
def score_with_champion(
    registry: str, inbox: str, out: Path, key: Path | None, compute: ComputeConfig
) -> tuple[str, Scored]:
    """Fetch the champion, check it, and answer what is new; a place that cannot be reached is tried again.

    Returns:
        The champion's version, and what was found.
    """
    bundles = Registry(registry)
    version = bundles.require_champion()
    with TemporaryDirectory() as folder:
        bundle = bundles.fetch(version, Path(folder, "bundle.zip"))
        return version, score_inbox(bundle, inbox, out, key=key, compute=compute)


@flow(name="score")
def score(
    registry: str = "registry",
    inbox: str = "inbox",
    out: Path = Path("scores.db"),
    key: Path | None = None,
    compute: ComputeConfig = LOCAL,
) -> State[None]:
    """Answer every image of an inbox that the champion has not answered yet.

    Args:
        registry: folder, or place that fsspec reaches.
        inbox: the same, of images.
        out: SQLite file with a row an image: its answer, or why there is none.
        key: public key that must have signed the champion.
        compute: where images are answered, as section compute of params.yaml.
    """
    state = score_with_champion(registry, inbox, out, key, compute, return_state=True)
    if not state.is_completed():
        return as_own(state)
    version, scored = cast("tuple[str, Scored]", state.result())
    rows = {"answered": scored.answered, "failed": scored.failed, "known before": scored.known}
    table = "".join(f"| {name} | {count} |\n" for name, count in rows.items())
    create_markdown_artifact(
        key="scores",
        description="What was new in the inbox",
        markdown=f"| images | |\n| --- | --- |\n{table}\nChampion: `{version}`  \nAnswers: `{out}`\n",
    )
    return Completed(message=", ".join(f"{count} {name}" for name, count in rows.items()))
